"""The one place that spells paths, publishes files, and reads and writes shards, tables, arrays and manifests.

``storage_layout.md`` is the norm this package follows; ``tests/stages/test_storage_layout.py`` holds the two together.
"""

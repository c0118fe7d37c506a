"""The six stages, each a plain function of (config, inputs, workspace) to an artifact.

A stage module holds ``Config``, ``INPUTS`` (the stages whose artifacts it reads), ``VERSION`` (bumped by hand when the same
config and inputs would give other bytes) and ``run(config, inputs, workspace) -> Outcome``. It never imports another stage,
and knows nothing of recipes, Prefect or MLflow.
"""

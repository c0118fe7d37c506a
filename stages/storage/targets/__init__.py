"""Targets: codes, priorities and further products of every clip and view in Zarr, with the view table and the ledger.

``layout`` names the files and tables, ``writing`` publishes units and ``adoption`` takes them over from an earlier artifact;
``reading`` finds the place of a clip's values, and ``chunks`` reads a place: all that a worker of a training needs.
"""

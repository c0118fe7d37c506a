"""Wiring: recipes, the plan, running stages, tracking, flows, the command line. Only here are Prefect and MLflow known.

Whether something is done is never decided here: a stage's committed artifact says so. What this package adds is which
stages run, with which inputs, and who is told.
"""

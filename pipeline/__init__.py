"""Wiring: recipes, the plan, running stages, tracking, flows and the command line. The only layer that knows Prefect and MLflow.

Whether something is done is never decided here: a stage's committed artifact says so. What this package adds is which
stages run, with which inputs, and who is told.
"""

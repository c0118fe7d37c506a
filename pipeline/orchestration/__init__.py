"""Prefect: flows and their forms, deployments, what lands, and what a run shows in the UI."""

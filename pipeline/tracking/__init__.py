"""MLflow: what a run records, the outbox that it is sent from, and the registered encoders."""

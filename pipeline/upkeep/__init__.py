"""What keeps a root and a machine in order: garbage collection, and checks with remedies."""

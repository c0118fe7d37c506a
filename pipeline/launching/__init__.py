"""Training by several processes and on several machines, launched by torchrun."""

"""Servers: those of one machine, started by one command, and the gate before those of a deployment."""

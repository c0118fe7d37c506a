"""What a run would take: units, bytes and minutes."""

"""Methods that decide which tasks share a network."""

"""Methods that define their own network."""

"""Methods that bring their own network."""

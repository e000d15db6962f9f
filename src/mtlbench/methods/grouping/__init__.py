"""Methods that choose the tasks that share a network."""

"""Studies: a suite resolved against data, methods and versions, ready to run."""

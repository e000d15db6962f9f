"""Methods that need several runs."""

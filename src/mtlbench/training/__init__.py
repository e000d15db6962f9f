"""Training: one run, from its specification to a result on disk."""

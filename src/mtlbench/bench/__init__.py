"""The bench: drives the plans of a study to their end through an executor."""

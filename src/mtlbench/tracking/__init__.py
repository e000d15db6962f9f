"""Copies of a run's own records in W&B and other tools. An error of a tool ends the copy, never the run."""

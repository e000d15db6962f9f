"""File formats of particular data sets."""

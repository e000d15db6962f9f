"""Computes the content of the tables: scores, ranks, costs and groups as plain values."""

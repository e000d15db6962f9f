"""What the tables of the report say: scores, ranks, costs and groups as plain values."""

"""Data sets: one file each. They import mtlbench, never the reverse."""

"""Methods that weight task losses."""

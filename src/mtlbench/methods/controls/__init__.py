"""Controls: rows that no method may fall below, and that say what a score is worth."""

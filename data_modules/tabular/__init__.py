"""What tables need: columns as numbers, and columns as targets."""

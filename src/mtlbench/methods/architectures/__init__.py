"""Methods with a network of their own."""

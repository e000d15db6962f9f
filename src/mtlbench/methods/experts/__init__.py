"""Methods with sparse experts."""

"""Methods that look one step ahead."""

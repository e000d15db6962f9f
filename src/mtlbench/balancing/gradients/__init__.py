"""Gradients of tasks: collected, averaged over ranks, combined and written back."""

"""Executors start runs. All state is on disk, so an executor may die at any moment without loss."""

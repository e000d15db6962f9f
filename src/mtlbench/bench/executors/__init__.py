"""Executors start runs somewhere. State lives on disk: an executor may die at any moment and nothing is lost."""

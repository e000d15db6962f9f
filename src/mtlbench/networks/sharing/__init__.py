"""Computation sharing between networks: sparse changes of weights and activations."""

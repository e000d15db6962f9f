"""Computation that one network shares with another: sparse changes of weights and of activations."""

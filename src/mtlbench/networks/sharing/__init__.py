"""Computation sharing between networks by sparse changes of weights and activations."""

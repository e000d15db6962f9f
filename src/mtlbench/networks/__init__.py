"""Networks: encoders, decoders and experts. `base` defines the interface between a network and a method."""

"""Networks: encoders, decoders and experts. What every network gives a method stands in `base`."""

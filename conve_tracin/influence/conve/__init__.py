"""The fast engine for ConvE: `engine` is what others call, and says how the rest works together."""

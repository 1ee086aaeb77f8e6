"""The fast engine for ConvE: `passes` is what others call, and says how the rest works together."""

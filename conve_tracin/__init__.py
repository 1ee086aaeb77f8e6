"""ConvE link prediction on knowledge graphs, and the training triples behind each prediction."""

__version__ = "0.1.0"

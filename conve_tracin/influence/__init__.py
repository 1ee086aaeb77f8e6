"""Influence of training triples on a prediction: one slow and obvious reference, and engines that equal it."""

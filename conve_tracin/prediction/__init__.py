"""Candidates: the likeliest answers of a model to queries."""

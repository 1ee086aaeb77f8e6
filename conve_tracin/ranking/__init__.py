"""Filtered ranks and their metrics, and the table of all test triples by rank."""

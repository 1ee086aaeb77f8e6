"""Explaining predictions: `explain.py` reads, traces and writes; the others are its steps."""

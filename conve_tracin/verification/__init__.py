"""Checking an explanation by training again: `verify.py` reads, trains and writes; the others are its steps."""

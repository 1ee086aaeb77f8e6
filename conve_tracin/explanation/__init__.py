"""The rooms of `explain.py`: reading, tracing and writing."""

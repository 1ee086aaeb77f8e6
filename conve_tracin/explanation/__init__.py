"""The steps of `explain.py`: what a run works on, reading, tracing, writing, self-influence, and the two scripts."""

"""Training: the state of a run, batches, epochs and resumption."""

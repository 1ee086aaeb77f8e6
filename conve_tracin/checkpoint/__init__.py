"""Checkpoints: what they hold, how they are saved and read, and PyKEEN's."""

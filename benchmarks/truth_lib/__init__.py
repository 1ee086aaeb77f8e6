"""How true influence scores are: measured against models that were really retrained."""

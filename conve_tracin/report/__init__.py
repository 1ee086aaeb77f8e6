"""What a run writes for people and programs: JSON, tables, curves, and the page a biologist reads."""

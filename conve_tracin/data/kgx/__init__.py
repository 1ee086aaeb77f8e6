"""KGX graphs: their files, what Biolink says of them, and the triples, names and evidence made of them."""

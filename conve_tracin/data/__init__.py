"""Files to numbers: text, vocabularies, triples, queries, data sets and KGX graphs."""

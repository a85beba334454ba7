"""Several processes as one run: which they are, broadcasts between them, the parent of each, and signals."""

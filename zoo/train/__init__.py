"""Training: the compiled step, the program of a recipe, the loop around it, and what it logs."""

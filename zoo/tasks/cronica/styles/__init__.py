"""The eight commentators, one module each."""

"""Weights in and out: names and paths to weights, a run's initial parameters, exports and their cards."""

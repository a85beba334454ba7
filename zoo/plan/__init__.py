"""Memory and time before a run: whether a step fits into the devices, and what it needs on hardware that is not here.

`fit` says which changes make a step fit, `layout` lays out the devices of `mesh: auto`. For `zoo plan`, `targets` names
the devices, `compiled` and `estimate` count memory and collectives, `collectives` reads and times these, `search` looks
for the largest batch and `report` puts them together.
"""

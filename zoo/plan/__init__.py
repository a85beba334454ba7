"""`zoo plan`: what a recipe's training step needs on hardware that is not here.

`targets` names the devices, `compiled` and `estimate` find memory and collectives, `collectives` reads and times these,
`search` looks for the largest batch, `report` puts them together.
"""

"""The optimizers, a module each. A new one is a module here and a line in `zoo.registry.OPTIMIZERS`."""

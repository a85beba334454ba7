"""One file a model: a frozen config and an `nnx.Module` composed from `zoo.layers`."""

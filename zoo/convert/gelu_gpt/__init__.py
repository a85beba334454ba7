"""The PyTorch files that go into a Hugging Face directory of gelu-d12. Nothing here is imported by zoo itself."""

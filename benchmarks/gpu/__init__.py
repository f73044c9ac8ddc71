"""Everything that a short time with a GPU is to tell, in one command: see `benchmarks.gpu.__main__` and docs/gpu.md."""

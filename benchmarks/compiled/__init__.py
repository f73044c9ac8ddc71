"""What the kernels compile to, on GPUs that need not be there: `python -m benchmarks.compiled --help`."""

"""Checks the Triton kernels on the machine at hand: `python -m benchmarks.verify --help`."""

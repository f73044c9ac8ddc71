"""Checks the Triton kernels on the machine at hand: `python -m maskgit_kernels.verify --help`."""

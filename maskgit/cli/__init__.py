"""The command line of inpainting, from options to files: on top of everything but training and the sweeps."""

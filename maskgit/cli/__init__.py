"""The command line of inpainting."""

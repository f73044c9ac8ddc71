"""What the decoding options do to quality and time: held-out images are inpainted with every combination of them.

`python -m maskgit.sweep`; see docs/sweeps.md. Imports `metrics`, and below.
"""

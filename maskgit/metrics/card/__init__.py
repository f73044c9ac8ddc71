"""The card of a model: every figure and picture of it, from images that the model was not trained on.

`python -m maskgit.metrics.card` measures, and sets tables and pictures. Imports the rest of `metrics`, and below.
"""

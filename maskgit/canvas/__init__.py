"""Pixels around the model: which cells a hole hides, how a fill is pasted, how a picture grows."""

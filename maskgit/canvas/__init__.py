"""Pixels around the model: which cells a hole hides, how a fill is pasted, how a picture grows.

It knows pictures and masks, but no model and no file, and may import `maskgit.memory` only.
"""

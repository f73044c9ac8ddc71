"""The networks that predict tokens, what they share, and the folder that holds a model."""

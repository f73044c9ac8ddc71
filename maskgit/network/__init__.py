"""The networks that predict tokens, how they run fastest, and the folder that holds a model.

`transformer` and `halton` are the networks. `copies` are for inference: for a CPU or for autocast, weights cast once;
`partial` evaluates a network at some tokens only. `folder` writes and reads models.

It may import tokenizer, decoding (what a model says of its decoding) and what lies below; no picture comes in here.
"""

"""The VQGAN tokenizer, from images to tokens and back, and its training losses. It may import `maskgit.config` only."""

from maskgit.tokenizer.vqgan import VQGAN

__all__ = ["VQGAN"]

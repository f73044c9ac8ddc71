"""The VQGAN tokenizer and its training losses."""

from maskgit.tokenizer.vqgan import VQGAN

__all__ = ["VQGAN"]

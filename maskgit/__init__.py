"""MaskGIT: VQGAN tokenizer, masked visual token modeling, iterative decoding, inpainting.

from maskgit import MaskGIT

model = MaskGIT.from_pretrained("embedded")
results = model.inpaint([image], [mask])  # mask: bool [H, W], True = fill
results[0].image.save("filled.png")
"""

from maskgit.decoding import DecodeConfig
from maskgit.pipeline import InpaintResult, MaskGIT

__all__ = ["DecodeConfig", "InpaintResult", "MaskGIT"]

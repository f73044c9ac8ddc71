"""MaskGIT, the pipeline: pictures in, pictures out.

`model` has the class with what users call, top to bottom. Below it: `filling`, of pictures window by window; `inputs`,
the kinds of pictures and masks, made one; `arguments`, checking what else is passed; `pixels`, from pictures to tensors
and back; `networks`, from pixels to tokens, filled step by step, and back, tensors only.

It may import all rooms below it (data, network, tokenizer, decoding, canvas); commands and pages stand above it.
"""

from maskgit.pipeline.arguments import SMALLEST_WINDOW, Precision, image_seed, resolve_device, resolve_precision
from maskgit.pipeline.filling import Progress
from maskgit.pipeline.model import MaskGIT
from maskgit.pipeline.pixels import InpaintResult, Step

__all__ = [
    "SMALLEST_WINDOW",
    "InpaintResult",
    "MaskGIT",
    "Precision",
    "Progress",
    "Step",
    "image_seed",
    "resolve_device",
    "resolve_precision",
]

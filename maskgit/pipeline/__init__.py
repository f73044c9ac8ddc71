"""MaskGIT, the pipeline: pictures in, pictures out.

`model` has the class with what users call, top to bottom. Below it: `arguments`, checking what they pass; `pixels`,
from pictures to tensors and back; `networks`, from pixels to tokens, filled step by step, and back, tensors only.

It may import all rooms below it (data, network, tokenizer, decoding, canvas); commands and pages stand above it.
"""

from maskgit.pipeline.arguments import Precision, image_seed, resolve_device
from maskgit.pipeline.model import MaskGIT, Progress
from maskgit.pipeline.pixels import InpaintResult, Step

__all__ = ["InpaintResult", "MaskGIT", "Precision", "Progress", "Step", "image_seed", "resolve_device"]

"""MaskGIT: VQGAN tokenizer, masked visual token modeling, iterative decoding, inpainting.

from maskgit import MaskGIT

model = MaskGIT.from_pretrained("embedded")
result = model.inpaint("photo.jpg", "hole.png")  # or PIL images, NumPy arrays, PyTorch tensors; white is filled
result.image.save("filled.png")
"""

from maskgit.threads import wait_briefly_in_commands

wait_briefly_in_commands()  # before the first import of PyTorch

from maskgit.decoding import DecodeConfig  # noqa: E402
from maskgit.pipeline import InpaintResult, MaskGIT  # noqa: E402

__version__ = "0.1.0"

__all__ = ["DecodeConfig", "InpaintResult", "MaskGIT", "__version__"]


def __dir__() -> list[str]:
    """What is for users; not the rooms inside."""
    return __all__

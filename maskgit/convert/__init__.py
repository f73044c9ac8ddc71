"""Importers of other people's checkpoints.

    python -m maskgit.convert VQGAN.pt transformer.pt models/cats

    from maskgit.convert import Hints, convert
    convert(["VQGAN.pt", "transformer.pt"], "models/cats", Hints(heads=16))

writes a model folder that `MaskGIT.from_pretrained` reads. Nothing in a file is ever run: PyTorch files are loaded with
weights_only, and whatever needs code is refused. Every tensor of a network is used, fits, and is finite, or nothing is
written.

    reading.py    files to tables of tensors
    formats.py    which system made them
    lab.py, taming.py, valeo.py, google.py    how each system's networks are ours
    weights.py, vqgans.py, transformers.py    what these have in common
    conversion.py    tokenizer and transformer together, and the folder
    __main__.py      the command

Imports the networks and the tokenizer; nothing of data, the pipeline and training.
"""

from maskgit.convert.conversion import Conversion, Part, convert, read_model
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError

__all__ = ["Conversion", "ConvertError", "Hints", "Part", "convert", "read_model"]

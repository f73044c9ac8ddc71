"""Sound inputs that hostile ones are made from, and the tiny model that they meet."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskgit import MaskGIT
from maskgit.data import AugmentConfig, ImageFolder
from maskgit.data.tokens import tokenize
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

CANARY = "canary"
"""The file, beside an input's folder, that code in an input would make."""
TESTS = Path(__file__).resolve().parents[1]


@dataclass
class Seeds:
    """Made once, before any process is forked."""

    model: MaskGIT
    """16x16 pixels, 4x4 tokens, 16 codes, 3 classes: red, green, blue."""
    folder: Path
    """Holds `model`, a model folder; `tokens`, token shards with holes; and `pictures`, in two classes."""
    checkpoints: dict[str, dict[str, torch.Tensor]]
    """Tensors of other systems' tokenizers and transformers, by name."""
    originals: ModuleType
    tiny_train: ModuleType

    def take(self, name: str) -> Path:
        """Copy one of the folders into the current one."""
        shutil.copytree(self.folder / name, name)
        return Path(name)


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURE = as_png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)))
"""A sound picture of 24x20."""


def load_module(path: Path) -> ModuleType:
    """A module or package of the tests by its file: it is in no package."""
    name = path.parent.name if path.stem == "__init__" else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def make_seeds(folder: Path) -> Seeds:
    """Make all of them in an empty folder, which stays as it is from then on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    originals = load_module(TESTS / "maskgit/convert/originals/__init__.py")
    tiny_train = load_module(TESTS / "maskgit/training/tiny_train.py")
    tokenizer = VQGAN(tiny_train.TOKENIZER).eval()
    with torch.no_grad():
        latents = tokenizer.latents(torch.rand(16, 3, 16, 16) * 2 - 1)
        tokenizer.codebook.weight.copy_(latents[:, :, 1, 2])  # so that several codes are in use
    names = ["red", "green", "blue"]
    values: dict[str, Any] = {**vars(tiny_train.TRANSFORMER), "num_classes": len(names)}
    transformer = Transformer(type(tiny_train.TRANSFORMER)(**values)).eval()
    model = MaskGIT(tokenizer, transformer, names, {"made": "for tests"}, device="cpu", precision="float32")
    model.save_pretrained(folder / "model")
    tiny_train.make_pictures(folder / "pictures")
    with contextlib.redirect_stderr(io.StringIO()):
        images = ImageFolder(folder / "pictures", 16)
        for split in ("train", "val"):
            arguments = {"views": 2, "augment": AugmentConfig(), "seed": 0, "device": torch.device("cpu")}
            tokenize(tokenizer, images, folder / "tokens" / split, hole_share=1.0, holes=1, processes=0, **arguments)
    checkpoints = {
        name: getattr(originals, name)().tensors
        for name in ("lab_vqgan", "lab_transformer", "taming", "valeo_maskgit", "halton", "google_tokenizer")
    }
    return Seeds(model, folder, checkpoints, originals, tiny_train)


def preload() -> None:
    """Import what commands import when they run, so that no forked process has to."""
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch.utils.flop_counter  # noqa: F401

    import maskgit.cli.inpaint
    import maskgit.convert.__main__
    import maskgit.training.cli  # noqa: F401


def plant_programs(folder: Path) -> None:
    """Put programs that files could make others start (Ghostscript) first in the PATH: each makes the canary."""
    folder.mkdir()
    for name in ("gs", "gswin64c", "sh-canary"):
        (folder / name).write_text(f"#!/bin/sh\n: > ../{CANARY}\n")
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

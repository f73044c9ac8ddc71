"""What the command that makes a model's card is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskgit.console import UsageError, require_at_least
from maskgit.pipeline import Precision


@dataclass(frozen=True)
class Options:
    """Measure a model on held-out images: tokenizer, masked-token loss, inpainting. Writes a report and pictures."""

    model: Annotated[str, tyro.conf.Positional] = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    output: Path = Path("outputs/evaluation")
    """Folder for report.json, report.md, inpaintings.png and reconstructions.png."""
    data: str = "avatars"
    """A folder of images, or `avatars` for the embedded data set. Its validation side is measured; the training side
    gives what that is compared with."""
    max_images: int | None = None
    """Measure this many held-out images, drawn at random. Default: all."""
    seed: int = 0
    """Seed of all that is random here: masks, decoding, which images are shown."""
    seeds: int = 3
    """Times that each hole is filled, each from other random numbers."""
    rounds: int = 8
    """Masks per image for the masked-token loss."""
    steps: int | None = None
    """Decoding steps. Default: the model's."""
    classes: bool = False
    """Tell a class-conditional model the class of each image."""
    feature_size: int = 224
    """Side that images are enlarged to for the features of the Fréchet distance."""
    batch_size: int = 16
    """Images that are worked on together."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    precision: Precision = "auto"
    """Of the transformer; auto is bf16 where the hardware computes in it."""

    def check(self) -> None:
        """Raise UsageError if a value makes no sense."""
        least = {"seed": 0, "seeds": 1, "rounds": 1, "steps": 1, "feature_size": 32, "batch_size": 1, "max_images": 2}
        require_at_least(self, least)
        if self.seed >= 2**64:
            raise UsageError(f"--seed {self.seed}: must be below 2**64")

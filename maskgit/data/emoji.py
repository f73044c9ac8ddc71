"""The embedded data set: Noto Color Emoji as 64x64 RGB on white (made by scripts/make_emoji.py).

SIL Open Font License 1.1; the notice is in maskgit/assets/NOTO_EMOJI_LICENSE.txt and inside the zip.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from importlib import resources
from typing import NamedTuple

import numpy as np
from PIL import Image

from maskgit.data.images import ImageDataset, Split, check_size, images_of_split

VAL_FRACTION = 0.1


class Emoji(NamedTuple):
    """One entry of the zip's index."""

    file: str
    codepoints: str
    """Hexadecimal, separated by spaces: "1F34E"."""
    name: str
    """The Unicode (CLDR) name: "red apple"."""
    group: str
    """The Unicode group: "Food & Drink"."""
    family: str
    """The same for all skin-tone, gender and direction variants of an emoji."""


@functools.lru_cache(maxsize=1)
def load_emoji() -> tuple[list[Emoji], list[str], np.ndarray]:
    """All of the set, decoded once per process (about a second): the n entries in Unicode's order, names of the Unicode
    groups, and uint8 [n, 64, 64, 3], read-only."""
    data = (resources.files("maskgit") / "assets" / "emoji.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        index = json.loads(archive.read("index.json"))
        entries = [Emoji(**entry) for entry in index["emoji"]]
        pixels = np.empty((len(entries), index["size"], index["size"], 3), dtype=np.uint8)
        for i, entry in enumerate(entries):
            pixels[i] = np.asarray(Image.open(io.BytesIO(archive.read(entry.file))).convert("RGB"))
    pixels.flags.writeable = False
    return entries, index["groups"], pixels


class EmojiDataset(ImageDataset):
    """The embedded emoji. The classes are the Unicode groups.

    The split goes by family, so that all variants of an emoji are on the same side. They are stored at 64x64. Arguments
    and errors are those of `maskgit.data.load_dataset`.
    """

    def __init__(self, image_size: int = 64, split: Split = "all", val_fraction: float = VAL_FRACTION):
        self.image_size = check_size(image_size)
        entries, self.class_names, pixels = load_emoji()
        chosen = images_of_split("emoji", (entry.family for entry in entries), split, val_fraction)
        self.entries = [entries[i] for i in chosen]
        self.names = [entry.name for entry in self.entries]
        self.families = [entry.family for entry in self.entries]
        self.labels = np.array([self.class_names.index(entry.group) for entry in self.entries], dtype=np.int64)
        self.pixels = pixels[chosen]

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return self.names[index]

    def family_numbers(self) -> np.ndarray:
        return np.unique(self.families, return_inverse=True)[1]

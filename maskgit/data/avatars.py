"""The embedded data set: avatars of 12 styles as 64x64 RGB (made by scripts/make_avatars).

Who drew them, and under which license, is in maskgit/assets/AVATARS_NOTICE.txt and inside the zip.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from importlib import resources

import numpy as np
from PIL import Image

from maskgit.data.images import ImageDataset, Split, check_size, images_of_split

VAL_FRACTION = 0.1


@functools.lru_cache(maxsize=1)
def load_avatars() -> tuple[list[str], list[str], np.ndarray]:
    """All of the set, decoded once per process (about two seconds).

    Returns:
        The names of the n pictures, "lorelei/12.webp", by style and seed; the names of the styles; and uint8
        [n, 64, 64, 3], read-only.
    """
    data = (resources.files("maskgit") / "assets" / "avatars.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        index = json.loads(archive.read("index.json"))
        names, size = index["pictures"], index["size"]
        pixels = np.empty((len(names), size, size, 3), dtype=np.uint8)
        for i, name in enumerate(names):
            pixels[i] = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
    pixels.flags.writeable = False
    return names, [style["style"] for style in index["styles"]], pixels


class AvatarDataset(ImageDataset):
    """The embedded avatars. The classes are the styles.

    A picture is held out by its name, which it also has in a folder that scripts/make_avatars makes: what is held out
    here is so there. They are stored at 64x64. Arguments and errors are those of `maskgit.data.load_dataset`.
    """

    def __init__(self, image_size: int = 64, split: Split = "all", val_fraction: float = VAL_FRACTION):
        self.image_size = check_size(image_size)
        names, self.class_names, pixels = load_avatars()
        chosen = images_of_split("avatars", names, split, val_fraction)
        self.names = [names[i] for i in chosen]
        styles = [name.partition("/")[0] for name in self.names]
        self.labels = np.array([self.class_names.index(style) for style in styles], dtype=np.int64)
        self.pixels = pixels[chosen]

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return self.names[index]

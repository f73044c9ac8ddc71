"""Pictures that a run leaves behind."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from maskgit.files import write_atomically


def save_image_grid(images: Tensor, path: Path, columns: int) -> np.ndarray:
    """Write float images [B, 3, S, S] in [-1, 1] as one PNG, row by row; returns it as uint8 [H, W, 3]."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    missing = -len(pixels) % columns
    pixels = np.concatenate([pixels, np.full((missing, *pixels.shape[1:]), 255, dtype=np.uint8)])
    rows, size = len(pixels) // columns, pixels.shape[1]
    grid = pixels.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    data = io.BytesIO()
    Image.fromarray(grid).save(data, "PNG")
    write_atomically({path: data.getvalue()})
    return grid

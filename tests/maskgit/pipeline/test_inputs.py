"""The kinds of pictures and masks that people have: each gives the same result, and anything else is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import box, picture, same

from maskgit.pipeline import InpaintResult, MaskGIT
from maskgit.pipeline.inputs import Picture, read_given, read_holes, read_pictures

HOLE = box(20, 16, 4, 4, 9, 9)


def stored(mode: str, seed: int = 0) -> np.ndarray:
    """Random pixels of 20x16."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    return np.random.default_rng(seed).integers(0, 256, (16, 20, bands), dtype=np.uint8)


def pillow(mode: str) -> Image.Image:
    pixels = stored(mode)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


KINDS: dict[str, Any] = {
    "NumPy, uint8": lambda pixels: pixels,
    "NumPy, float32": lambda pixels: (pixels / 255).astype(np.float32),
    "NumPy, float64": lambda pixels: pixels / 255,
    "NumPy, not contiguous": lambda pixels: np.repeat(pixels, 2, axis=1)[:, ::2],
    "torch, uint8": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "torch, float32": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
    "torch, float16": lambda pixels: (torch.from_numpy(pixels).permute(2, 0, 1) / 255).half(),
    "torch, with a gradient": lambda pixels: (torch.from_numpy(pixels).permute(2, 0, 1) / 255).requires_grad_(),
}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_pictures(mode: str, kind: str) -> None:
    (given,) = read_pictures([KINDS[kind](stored(mode))])
    assert given.upright.mode == mode and same(given.upright, pillow(mode))


def test_grey_and_deep_arrays() -> None:
    pixels = stored("L")
    for grey in (pixels[..., 0], torch.from_numpy(pixels[..., 0])):
        assert same(read_given(grey, 0).upright, pillow("L"))
    deep = np.random.default_rng(0).integers(0, 2**16, (16, 20), dtype=np.uint16)
    given = read_given(deep, 0)
    assert given.upright.mode == "I;16" and np.array_equal(np.asarray(given.upright), deep)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp"])
def test_a_path_is_a_picture(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a b.{suffix}"
    pillow("RGB").save(path, **({"lossless": True} if suffix == "webp" else {}))
    for given in (path, str(path)):
        assert same(read_given(given, 0).upright, pillow("RGB"))


MASKS: dict[str, Any] = {
    "NumPy, bool": lambda hole: hole,
    "NumPy, [H, W, 1]": lambda hole: hole[..., None],
    "NumPy, 0 and 255": lambda hole: hole.astype(np.uint8) * 255,
    "NumPy, 0 and 1": lambda hole: hole.astype(np.uint8),
    "NumPy, soft": lambda hole: np.where(hole, 0.5, 0.49).astype(np.float32),
    "torch, bool": torch.from_numpy,
    "torch, [1, H, W]": lambda hole: torch.from_numpy(hole)[None],
    "torch, uint8": lambda hole: torch.from_numpy(hole.astype(np.uint8) * 255),
    "torch, float32": lambda hole: torch.from_numpy(hole.astype(np.float32)),
    "PIL, 1": Image.fromarray,
    "PIL, L": lambda hole: Image.fromarray(hole.astype(np.uint8) * 255),
    "PIL, RGB": lambda hole: Image.fromarray(hole.astype(np.uint8) * 255).convert("RGB"),
    "PIL, RGBA, painted": lambda hole: Image.merge(
        "RGBA", [Image.new("L", (20, 16), 255)] * 3 + [MASKS["PIL, L"](hole)]
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind: str, tmp_path: Path) -> None:
    mask, pictures = MASKS[kind](HOLE), read_pictures([pillow("RGB")])
    assert np.array_equal(read_holes([mask], pictures)[0], HOLE)
    if isinstance(mask, Image.Image):
        mask.save(tmp_path / "mask.png")
        for path in (tmp_path / "mask.png", str(tmp_path / "mask.png")):
            assert np.array_equal(read_holes([path], pictures)[0], HOLE)


def test_one_in_one_out(model: MaskGIT) -> None:
    images: list[Picture] = [pillow("RGB"), stored("RGB"), torch.from_numpy(stored("RGB")).permute(2, 0, 1)]
    (expected,) = model.inpaint([pillow("RGB")], [HOLE], steps=2)
    for image in images:
        result = model.inpaint(image, HOLE, steps=2)
        assert isinstance(result, InpaintResult) and same(result.image, expected.image)
    results = model.inpaint(images, [HOLE] * 3, steps=2, seeds=[3] * 3)
    assert all(same(result.image, results[0].image) for result in results)
    batch = torch.from_numpy(np.stack([stored("RGB"), stored("RGB", 1)])).permute(0, 3, 1, 2)
    assert len(model.inpaint(batch, [HOLE, HOLE], steps=2)) == 2
    wide = model.outpaint(images[1], (0, 0, 4, 0), steps=2)
    assert wide.size == (24, 16) and same(wide, model.outpaint([images[1]], [(0, 0, 4, 0)], steps=2)[0])
    assert model.inpaint([], [], steps=2) == []


class Odd:
    pass


@pytest.mark.parametrize(
    "image, reason",
    [
        (Odd(), "images must be one or a list of them, got Odd"),
        ([Odd()], "image 0 must be a PIL image, .* or a path; got Odd"),
        ([pillow("RGB"), None], "image 1 must be .*; got NoneType"),
        (b"bytes", "images must be one or a list of them, got bytes"),
        ([b"bytes"], "image 0 must be .*; got bytes"),
        (np.zeros((4, 4, 2), dtype=np.uint8), r"image 0 must be .*; got uint8 \[4, 4, 2\] of numpy"),
        (np.zeros((4, 4, 3), dtype=np.int64), r"image 0 must be .*; got int64 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "image 0 has no pixels: it is 4x0"),
        (torch.zeros(5, 4, 3), r"image 0 must be .*; got torch.float32 \[5, 4, 3\] of torch"),
        (torch.zeros(3, 4, 4).int(), r"image 0 must be .*; got torch.int32 \[3, 4, 4\] of torch"),
        (np.full((4, 4, 3), 2.0), r"image 0 has floats from 2 to 2: they must be in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "image 0 has floats from nan"),
        ("nowhere.png", "nowhere.png: no such file"),
    ],
)
def test_what_is_no_picture_is_named(model: MaskGIT, image: Any, reason: str) -> None:
    masks = [HOLE] * len(image) if isinstance(image, list) else HOLE
    margins = [(0, 0, 1, 0)] * len(masks) if isinstance(image, list) else (0, 0, 1, 0)
    with pytest.raises(ValueError, match=reason):
        model.inpaint(image, masks)
    with pytest.raises(ValueError, match=reason):
        model.outpaint(image, margins)


@pytest.mark.parametrize(
    "mask, reason",
    [
        (Odd(), "masks must be one or a list of them, got Odd"),
        ([None], "mask 0 must be a PIL image, .* or a path; got NoneType"),
        (HOLE[:8], r"mask 0 must be .*; its image is \[16, 20\], got bool \[8, 20\]"),
        (np.stack([HOLE] * 3, axis=-1), r"mask 0 must be .*; its image is \[16, 20\], got bool \[16, 20, 3\]"),
        (HOLE.astype(np.int64), "mask 0 must be .*, got int64"),
        (HOLE.astype(np.float32) * 255, r"mask 0 has floats from 0 to 255: they must be in \[0, 1\]"),
        (Image.new("L", (7, 16), 255), "mask 0: the mask is 7x16, the image 20x16"),
        ([HOLE, HOLE], "1 images, but 2 masks"),
        ("nowhere.png", "nowhere.png: no such file"),
    ],
)
def test_what_is_no_mask_is_named(model: MaskGIT, mask: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.inpaint(picture(20, 16), mask)

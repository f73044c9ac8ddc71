"""What is known is continued smoothly, cells that a hole touches, fills in tune with what surrounds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskgit.canvas import holes


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (8, 1), (5, 3), (16, 16), (13, 30)])
def test_smooth_fill_continues_what_is_known(height: int, width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(3, height, width, generator=rng)
    known = torch.rand(1, height, width, generator=rng) < 0.3
    known[0, 0, 0] = True
    filled = holes.smooth_fill(image, known)
    assert torch.equal(filled[:, known[0]], image[:, known[0]])
    # Averages and interpolation stay between the least and the greatest known value.
    values = image[:, known[0]]
    assert (filled.amin((1, 2)) >= values.amin(1) - 1e-6).all()
    assert (filled.amax((1, 2)) <= values.amax(1) + 1e-6).all()
    flat = holes.smooth_fill(torch.where(known, 0.25, image), known)
    assert torch.allclose(flat, torch.full_like(flat, 0.25))
    assert holes.smooth_fill(image, torch.zeros_like(known)).abs().max() == 0


@pytest.mark.parametrize("width", [1, 3, 5, 10])
def test_smooth_fill_is_near_the_membrane(width: int) -> None:
    """A slow change goes on through a hole, as Laplace's equation has it; the pyramid alone is off by up to 1.5."""
    ramp = torch.arange(64.0).expand(1, 64, 64)
    for rows in (slice(0, 64), slice(20, 20 + width)):
        known = torch.ones(1, 64, 64, dtype=torch.bool)
        known[:, rows, 10 : 10 + width] = False
        given = torch.where(known, ramp, -9.0)
        off = holes.smooth_fill(given, known) - ramp
        assert off.abs().max() < 0.36
        assert torch.equal(given, torch.where(known, ramp, -9.0)), "what is given stays as it is"


def test_smooth_fill_sweeps_where_that_takes_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over all of a large picture."""
    swept: list[int] = []
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, *rest, **options: swept.append(x.numel()) or pad(x, *rest, **options))
    far = torch.ones(1, 3000, 2000, dtype=torch.bool)
    far[:, 1:-1, 1:-1] = False
    near = torch.ones_like(far)
    near[:, 1000:1005, 300:500] = False
    for known in (far, near):
        swept.clear()
        assert torch.equal(holes.smooth_fill(torch.zeros(1, *far.shape[1:]), known), torch.zeros(1, *far.shape[1:]))
        assert swept and max(swept) <= 2**20
    assert max(swept) == 7 * 202


def test_depths() -> None:
    hidden = np.zeros((5, 9), dtype=bool)
    hidden[:, :6] = True
    assert holes.depths(hidden).tolist() == [[6, 5, 4, 3, 2, 1, 0, 0, 0]] * 5
    hidden[2, 1] = False
    assert holes.depths(hidden)[2].tolist() == [1, 0, 1, 2, 2, 1, 0, 0, 0]
    assert holes.depths(hidden)[0].tolist() == [2, 2, 2, 2, 2, 1, 0, 0, 0]
    assert (holes.depths(np.ones((3, 4), dtype=bool)) == 4).all()


def test_cells_with_holes() -> None:
    mask = np.zeros((10, 7), dtype=bool)
    mask[9, 0] = True
    assert np.argwhere(holes.cells_with_holes(mask, 5, 7)).tolist() == [[4, 0]]
    assert np.argwhere(holes.cells_with_holes(mask, 20, 7)).tolist() == [[18, 0], [19, 0]]  # cells within a pixel
    # Cell borders at 3.33 and 6.67: pixel 3 lies in two cells.
    mask[:] = False
    mask[3] = True
    assert holes.cells_with_holes(mask, 3, 1)[:, 0].tolist() == [True, True, False]


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_pasted_fill_is_in_tune_with_its_surroundings() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    mask = np.zeros((30, 40), dtype=bool)
    mask[5:19, 7:22] = True
    pixels = np.asarray(image).astype(int)
    assert same(holes.paste_known(image, image, mask), image)
    # A fill that is off by the same everywhere is put right.
    dim = Image.fromarray((pixels // 2 + 60).astype(np.uint8))
    off = Image.fromarray((pixels // 2 + 40).astype(np.uint8))
    assert same(holes.paste_known(dim, off, mask), dim)
    # What the fill has in the hole stays, also if nothing else is known of it.
    spot = np.asarray(dim).copy()
    spot[12, 15] = 255
    pasted = np.asarray(holes.paste_known(dim, Image.fromarray(spot), mask))
    assert np.array_equal(pasted, spot)
    everything = np.ones_like(mask)
    assert same(holes.paste_known(image, dim, everything), dim)
    assert same(holes.paste_known(image, dim, ~everything), image)


@pytest.mark.parametrize("pixels", [0, 1, 3, 40])
def test_a_grown_hole_reaches_as_far_on_all_sides(pixels: int) -> None:
    mask = np.random.default_rng(pixels).random((23, 31)) < 0.02
    expected = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        expected[max(0, row - pixels) : row + pixels + 1, max(0, column - pixels) : column + pixels + 1] = True
    assert mask.any() and np.array_equal(holes.grown(mask, pixels), expected)
    assert not holes.grown(np.zeros((5, 6), dtype=bool), pixels).any()


def test_blending_goes_from_the_picture_into_the_fill() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:15, 8:30] = True  # up to the right border, where nothing is known that it could go over into
    black, white = Image.new("RGB", (30, 20)), Image.new("RGB", (30, 20), "white")
    blend = np.asarray(holes.blended(black, white, mask, 3))[..., 0]
    assert (blend[~mask] == 0).all()
    assert blend[10, 8:14].tolist() == [64, 128, 191, 255, 255, 255] and (blend[10, 11:] == 255).all()
    assert blend[5:15, 20].tolist() == [64, 128, 191, 255, 255, 255, 255, 191, 128, 64]
    assert holes.blended(black, white, mask, 0) is white
    nothing = np.zeros_like(mask)
    assert np.array_equal(np.asarray(holes.blended(black, white, nothing, 3)), np.asarray(white))

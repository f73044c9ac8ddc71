"""A folder of masks that holes are drawn from: what is read, what is left out, and the holes of a shard."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import maskgit.data.hole_masks
from maskgit.data import AugmentConfig, DataError, ImageFolder, parts
from maskgit.data.hole_masks import HoleMasks, read_hole_masks
from maskgit.data.tokens import HIDDEN, TokenShard, open_shard, tokenize
from maskgit.tokenizer import VQGAN

SIZE, GRID = 16, 4


def save(path: Path, *areas: Any, shape: tuple[int, int] = (SIZE, SIZE), mode: str = "L") -> np.ndarray:
    """A mask file, white in these areas; what it hides, bool."""
    mask = np.zeros(shape, dtype=bool)
    for area in areas:
        mask[area] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path)
    return mask


def read(folder: Path) -> HoleMasks:
    return read_hole_masks(folder, SIZE, GRID)


def read_quietly(folder: Path) -> np.ndarray:
    """bool [n, S, S]; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = read(folder)
    return np.stack([masks[i] for i in range(len(masks))])


# --- what is read -----------------------------------------------------------------------------------------------------


def test_masks_of_all_kinds_at_any_depth(tmp_path: Path) -> None:
    """Those of black and white, labels of 0 and 1, painted layers, erased ones: in the order of their paths."""
    white = save(tmp_path / "b.tif", np.s_[2:5, 1:9], mode="RGB")
    label = np.zeros((SIZE, SIZE), dtype=np.uint8)
    label[9:12, 3] = 1
    (tmp_path / "a" / "deep").mkdir(parents=True)
    Image.fromarray(label).save(tmp_path / "a" / "deep" / "label.PNG")
    painted = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    painted[1:3, 10:14] = (255, 0, 0, 255)
    Image.fromarray(painted).save(tmp_path / "painted.webp", lossless=True)
    erased = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 4), dtype=np.uint8)
    erased[..., 3] = 255
    erased[12:15, 5:9, 3] = 0
    Image.fromarray(erased).save(tmp_path / "z.png")
    (tmp_path / ".hidden.png").write_bytes(b"none")
    (tmp_path / "notes.txt").write_text("none")
    expected = [label > 0, white, painted[..., 3] > 0, erased[..., 3] == 0]
    np.testing.assert_array_equal(read_quietly(tmp_path), expected)


def test_all_of_a_mask_is_squeezed_to_the_square(tmp_path: Path) -> None:
    """Neither its ends nor a line that is thinner than a pixel there are lost."""
    save(tmp_path / "a.png", np.s_[0, 0], np.s_[99, 799], shape=(100, 800))
    save(tmp_path / "b.png", np.s_[77, :], shape=(160, 480))
    save(tmp_path / "c.png", np.s_[3, 0], shape=(8, 8))
    first, second, third = np.zeros((3, SIZE, SIZE), dtype=bool)
    first[0, 0] = first[15, 15] = second[7] = third[6:8, 0:2] = True
    np.testing.assert_array_equal(read_quietly(tmp_path), [first, second, third])


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    save(tmp_path / "black.png")
    save(tmp_path / "white.png", np.s_[:])
    save(tmp_path / "grid.png", np.s_[::4, ::4])  # a pixel of each token
    save(tmp_path / "cut.png", np.s_[5, 5])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("not a mask")
    kept = save(tmp_path / "kept.png", np.s_[:, 4:])
    with pytest.warns(UserWarning) as caught:
        masks = read(tmp_path)
    assert len(masks) == 1 and np.array_equal(masks[0], kept)
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith(f"{tmp_path}: left out 5 of 6 masks:\n  ")
    for name, why in (
        ("black", "hides nothing"),
        ("white", "leaves none of the 4x4 tokens of 16x16 pixels known"),
        ("grid", "leaves none of the 4x4 tokens"),
        ("cut", "can't be decoded"),
        ("text", "not an image in a known format"),
    ):
        assert f"\n  {tmp_path / name}.png: {why}" in text


def test_a_photograph_is_doubted_and_taken(tmp_path: Path) -> None:
    """As inpainting does with it."""
    levels = np.linspace(40, 215, 64, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(levels, (64, 64))).save(tmp_path / "photo.png")
    with pytest.warns(UserWarning, match=r"1 of 1 masks may not be what is meant:\n  .*photo.png: the mask looks like"):
        (mask,) = read(tmp_path)
    assert mask[:, 8:].all() and not mask[:, :7].any()


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{tmp_path}: no masks in this folder .*.png.* at any depth"):
        read(tmp_path)
    save(tmp_path / "black.png")
    with pytest.warns(UserWarning, match="hides nothing"), pytest.raises(DataError, match="none of its 1 masks can be"):
        read(tmp_path)
    monkeypatch.setattr(maskgit.data.hole_masks, "MOST_BYTES", 64)  # two masks of 256 bits
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", np.s_[5, 5])
    (tmp_path / "black.png").write_bytes(b"never read")
    with pytest.raises(DataError, match="has 3 masks; at most 2 of 16x16 pixels are taken: leave some out"):
        read(tmp_path)
    (tmp_path / "black.png").unlink()
    assert len(read(tmp_path)) == 2


def test_told_apart_by_what_they_hide(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", np.s_[3, 4])
    save(tmp_path / "a" / "2.png", np.s_[5, 6])
    save(tmp_path / "same" / "other" / "x.bmp", np.s_[3, 4])
    save(tmp_path / "same" / "y.tif", np.s_[5, 6])
    save(tmp_path / "turned" / "1.png", np.s_[5, 6])
    save(tmp_path / "turned" / "2.png", np.s_[3, 4])
    save(tmp_path / "other" / "1.png", np.s_[3, 4])
    save(tmp_path / "other" / "2.png", np.s_[5, 7])
    keys = {name: read(tmp_path / name).key() for name in ("a", "same", "turned", "other")}
    assert keys["a"] == keys["same"] and len(set(keys.values())) == 3
    assert keys["a"] != read_hole_masks(tmp_path / "a", 32, 4).key()


# --- the holes of a shard ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    for i in range(12):
        Image.fromarray(rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return ImageFolder(folder, SIZE)


@pytest.fixture
def masks(tmp_path: Path) -> HoleMasks:
    """Three, none of which is a mirror of another: rows or a column of tokens."""
    for name, area in (("a", np.s_[1:3, 2:9]), ("b", np.s_[6:9, 13]), ("c", np.s_[14, 0:3])):
        save(tmp_path / "masks" / f"{name}.png", area)
    return read(tmp_path / "masks")


CELLS = [{0, 1, 2}, {7, 11}, {12}]
"""The tokens that the three hide: of 4x4, row by row."""


def make(tokenizer: VQGAN, images: ImageFolder, folder: Path, **options: Any) -> TokenShard:
    fixed: dict[str, Any] = {"augment": AugmentConfig(), "seed": 7, "device": torch.device("cpu")}
    return tokenize(tokenizer, images, folder, **fixed | {"views": 2, "hole_share": 1.0, "holes": 4} | options)


def hidden(shard: TokenShard) -> list[set[int]]:
    assert shard.holes is not None
    return [set(np.flatnonzero(row == HIDDEN)) for row in shard.holes.reshape(-1, GRID**2)]


def test_holes_are_these_masks(tiny_tokenizer: VQGAN, images: ImageFolder, masks: HoleMasks, tmp_path: Path) -> None:
    """With equal chances, and not mirrored where the picture is."""
    shard = make(tiny_tokenizer, images, tmp_path / "tokens", masks=masks)
    drawn = [CELLS.index(cells) for cells in hidden(shard)]
    counts = np.bincount(drawn, minlength=3)
    assert len(drawn) == 4 * 2 * 12 and abs(counts - 32).max() < 4.5 * (96 * 2 / 9) ** 0.5
    by_view = np.reshape(drawn, (4, 2, 12))
    assert (by_view[:, 0] != by_view[:, 1]).any() and (by_view[0] != by_view[1]).any()  # each has a draw of its own
    again = make(tiny_tokenizer, images, tmp_path / "again", masks=masks)
    assert np.array_equal(again.holes, shard.holes)
    assert hidden(make(tiny_tokenizer, images, tmp_path / "other", masks=masks, seed=8)) != hidden(shard)
    sample = shard.samples(np.array([3]), 1, 2)
    assert set(np.flatnonzero(sample.candidates[0])) == CELLS[by_view[2, 1, 3]]


def test_what_a_mask_hides_has_no_influence(tiny_tokenizer: VQGAN, images: ImageFolder, tmp_path: Path) -> None:
    save(tmp_path / "one" / "a.png", np.s_[2:9, 3:11])
    options: dict[str, Any] = {"masks": read(tmp_path / "one"), "views": 1, "holes": 1}
    before = make(tiny_tokenizer, images, tmp_path / "before", **options)
    (tmp_path / "changed").mkdir()
    for i, path in enumerate(images.paths):
        pixels = np.array(Image.open(path))
        pixels[2:9, 3:11] = 20 * i
        Image.fromarray(pixels).save(tmp_path / "changed" / path.name)
    after = make(tiny_tokenizer, ImageFolder(tmp_path / "changed", SIZE), tmp_path / "after", **options)
    assert not np.array_equal(before.tokens, after.tokens) and np.array_equal(before.holes, after.holes)


def test_a_shard_remembers_its_masks(
    tiny_tokenizer: VQGAN, images: ImageFolder, masks: HoleMasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "tokens", HoleMasks(masks.packed[::-1].copy(), SIZE)
    whole = make(tiny_tokenizer, images, folder, masks=masks).holes
    for changes, what in (({"masks": other}, "masks"), ({"masks": None}, "kinds")):
        with pytest.raises(DataError, match=f"holes.npy: is there already, made with other {what}; choose another"):
            make(tiny_tokenizer, images, folder, replace=False, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(VQGAN, "encode", lambda *_: 1 / 0)  # nothing is made again
        assert np.array_equal(make(tiny_tokenizer, images, folder, masks=masks).holes, whole)
    assert open_shard(folder, tiny_tokenizer, 7, 1.0, masks).holes is not None
    assert open_shard(folder, tiny_tokenizer, 7, 1.0).holes is not None
    with pytest.raises(DataError, match="holes.npy: its holes come from other masks; leave --hole-masks out"):
        open_shard(folder, tiny_tokenizer, 7, 1.0, other)
    made = make(tiny_tokenizer, images, folder)
    assert not all(cells in CELLS for cells in hidden(made))
    with pytest.raises(DataError, match="holes.npy: its holes come from no masks; .* train.py tokens --hole-masks"):
        open_shard(folder, tiny_tokenizer, 7, 1.0, masks)


@pytest.mark.slow
def test_the_same_bytes_from_another_process(
    tiny_tokenizer: VQGAN, images: ImageFolder, masks: HoleMasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS", 5)
    for processes in (0, 1):
        make(tiny_tokenizer, images, tmp_path / str(processes), masks=masks, processes=processes, holes=2, key="k")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("0", "1"))
    assert first == second and "holes.npy" in first


def test_masks_go_to_other_processes_as_bits() -> None:
    masks = HoleMasks(np.packbits(np.random.default_rng(0).random((100, 64 * 64)) < 0.3, axis=1), 64)
    sent = pickle.dumps(masks)
    assert len(sent) < 100 * 512 + 1000 and pickle.loads(sent).key() == masks.key()

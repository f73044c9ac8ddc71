"""What sets are read from: matching by name, features that are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_metrics import TinyNetwork, save_pictures
from torch import Tensor

from maskgit.data import DataError
from maskgit.metrics.features import extract_features
from maskgit.metrics.folders import find_pictures, folder_features, match_pictures


def test_matching_by_name(tmp_path: Path):
    real, generated = tmp_path / "real", tmp_path / "generated"
    save_pictures(real, ["a.jpg", "b.png", "sub/a.bmp", "c.jpg", "c.png"])
    beside = ["a.strip.png", "a.maps.png", "overview.grid.png"]
    save_pictures(generated, ["b.png", "a.png", "sub/a.png", "c.png", "c.png.png", *beside])
    pairs = {
        (x.relative_to(real).as_posix(), y.relative_to(generated).as_posix())
        for x, y in match_pictures(real, generated)
    }
    assert pairs == {
        ("a.jpg", "a.png"),
        ("b.png", "b.png"),
        ("sub/a.bmp", "sub/a.png"),
        ("c.jpg", "c.png"),
        ("c.png", "c.png.png"),
    }
    assert not {generated / name for name in beside} & set(find_pictures(generated))

    (generated / "c.png.png").unlink()
    with pytest.raises(DataError, match="c.png: not one picture but several"):
        match_pictures(real, generated)
    (real / "c.png").unlink()
    save_pictures(generated, ["d.png"])
    with pytest.raises(DataError, match=r"1 picture\(s\) \(d.png\) in .* with no original"):
        match_pictures(real, generated)
    (generated / "d.png").unlink()
    (generated / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 picture\(s\) \(b.png\) in .* with no picture of the same name"):
        match_pictures(real, generated)


def test_features_are_kept(tmp_path: Path):
    folder, cache, network = tmp_path / "real", tmp_path / "cache", TinyNetwork()
    save_pictures(folder, ["a.png", "sub/b.png"])
    calls = []

    def features(where: Path = folder, network: TinyNetwork = network, cache: Path | None = cache) -> Tensor:
        files = find_pictures(where)

        def extract() -> Tensor:
            calls.append(where)
            return extract_features(network, files)

        return folder_features(network, where, files, extract, cache)

    first = features()
    assert torch.equal(features(), first) and len(calls) == 1
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert torch.equal(features(moved), first) and len(calls) == 1

    other = TinyNetwork()
    other.weight[0, 0] += 1
    features(moved, other)
    assert len(calls) == 2
    features(moved, cache=None)
    assert len(calls) == 3

    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    with pytest.warns(UserWarning, match="damaged"):
        again = features(moved)
    assert torch.equal(again, first) and len(calls) == 4
    assert torch.equal(features(moved), first) and len(calls) == 4  # mended

    save_pictures(moved, ["a.png"], first_seed=9)
    assert not torch.equal(features(moved), first) and len(calls) == 5
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.warns(UserWarning, match="can't be kept"):
        assert len(features(moved, cache=blocked)) == 2

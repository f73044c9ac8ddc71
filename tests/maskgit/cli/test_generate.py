"""inpaint.py --generate: pictures of all classes in turn, and the picture that shows them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgit.cli.inpaint import main
from maskgit.pipeline import MaskGIT


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_all_classes_in_turn(class_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture is that of its class alone, also where a batch fails and its pictures are made one by one."""
    arguments = ["--model", str(class_model), "--steps", "2", "--guidance", "2", "--generate", "5", "--batch-size", "3"]
    made = {}
    for name in ("all", "cats", "dogs & co"):
        assert main([*arguments, "--class", name, "--output", str(tmp_path / name)]) == 0
        made[name] = [read(tmp_path / name / f"000{i}.png") for i in range(5)]
    for i, picture in enumerate(made["all"]):
        own, other = ("cats", "dogs & co") if i % 2 == 0 else ("dogs & co", "cats")
        assert np.array_equal(picture, made[own][i]) and not np.array_equal(picture, made[other][i])

    generate = MaskGIT.generate

    def small_memory(self: MaskGIT, count: int, **options: Any) -> Any:
        if count > 1:
            raise MemoryError
        return generate(self, count, **options)

    monkeypatch.setattr(MaskGIT, "generate", small_memory)
    assert main([*arguments, "--class", "all", "--output", str(tmp_path / "one by one")]) == 0
    for i, picture in enumerate(made["all"]):
        assert np.array_equal(read(tmp_path / "one by one" / f"000{i}.png"), picture)


def test_overview_of_pictures_from_nothing(class_model: Path, tmp_path: Path) -> None:
    """In the order of their numbers; of all classes, a column for each, with its name below."""
    arguments = ["--model", str(class_model), "--steps", "1", "--generate", "11", "--output", str(tmp_path)]
    for more, columns, border in ((["--class", "cats"], 8, 0), (["--class", "all"], 2, 1)):
        assert main([*arguments, *more]) == 0
        sheet = read(tmp_path / "overview.grid.png").astype(int)
        places = []
        for i in range(11):
            picture = read(tmp_path / f"{i:04}.png").repeat(8, 0).repeat(8, 1)
            found = [
                (y, x)
                for y, x in np.argwhere((sheet[:-127, :-127] == picture[0, 0]).all(-1))
                if np.array_equal(sheet[y : y + 128, x : x + 128], picture)
            ]
            places += found
            assert len(found) == 1
        rows, lines = (sorted({place[axis] for place in places}) for axis in (0, 1))
        assert [(rows.index(y), lines.index(x)) for y, x in places] == [divmod(i, columns) for i in range(11)]
        below = sheet[places[-1][0] + 128 + border :, places[-1][1] :][:, :128]
        assert (below < 128).any() == bool(border)

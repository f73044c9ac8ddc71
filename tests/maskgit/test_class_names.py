"""Classes by name and number: what a name that looks like a number means, and in which order folders become classes."""

from __future__ import annotations

import dataclasses
import io
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgit import MaskGIT
from maskgit.cli.inpaint import main
from maskgit.config import TokenizerConfig, TransformerConfig
from maskgit.data import ImageFolder, ImageShards
from maskgit.data.images import as_people_count
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

# As a person wrote them down, in their order.
IN_ORDER = [
    *("0", "7", "8", "10", "99", "100", "1" * 5000, "2" * 5000),
    *("Class 2", "Class 10", "Zebra", "a1b2", "a1b10", "a2", "a10", "v1.9", "v1.10", "zebra", "Émoji 😀", "٣"),
]


def test_names_sort_as_people_count() -> None:
    for seed in range(5):
        shuffled = random.Random(seed).sample(IN_ORDER, len(IN_ORDER))
        assert sorted(shuffled, key=as_people_count) == IN_ORDER
    # The same number in other clothes: any order, but always the same.
    assert sorted(["8", "7", "007", "07", "6"], key=as_people_count) == ["6", "007", "07", "7", "8"]


def write_png(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def test_folders(tmp_path: Path) -> None:
    """As torchvision's ImageFolder would for names of one length, and as people count for others."""
    for i in range(12):
        write_png(tmp_path / str(i) / "a.png", i)
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == [str(i) for i in range(12)]
    pixels = [int(data.image(i)[0, 0, 0]) for i in range(len(data))]
    assert data.labels.tolist() == pixels == [int(path.parent.name) for path in data.paths]


def test_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, name in enumerate(("class10", "class9", "class1")):
            image = io.BytesIO()
            Image.new("RGB", (8, 8)).save(image, "PNG")
            for member, data in ((f"{i}.png", image.getvalue()), (f"{i}.cls", name.encode())):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    data = ImageShards(tmp_path / "a.tar", 8)
    assert data.class_names == ["class1", "class9", "class10"] and data.labels.tolist() == [2, 1, 0]


def test_another_order_of_the_same_classes(tmp_path: Path) -> None:
    for name in ("1", "2", "10"):
        write_png(tmp_path / name / "a.png", int(name))
    data = ImageFolder(tmp_path, 8)
    by_picture = {int(data.image(i)[0, 0, 0]): data.class_names[data.labels[i]] for i in range(3)}
    for others in (["1", "2"], ["1", "2", "3"], ["1", "2", "10", "10"], []):
        data.number_classes_as(others)
        assert data.class_names == ["1", "2", "10"]
    data.number_classes_as(["1", "10", "2"])
    assert data.class_names == ["1", "10", "2"] and data.labels.dtype == np.int64
    assert {int(data.image(i)[0, 0, 0]): data.class_names[data.labels[i]] for i in range(3)} == by_picture
    write_png(tmp_path / "stray.png", 0)
    with pytest.warns(UserWarning, match="no classes"):
        data = ImageFolder(tmp_path, 8)
    data.number_classes_as([])
    assert data.class_names == [] and data.labels.tolist() == [0] * 4


@pytest.fixture
def model(tiny_tokenizer_config: TokenizerConfig, tiny_transformer_config: TransformerConfig) -> Callable[..., MaskGIT]:
    """model(*names): one of classes with these names; of `unnamed` classes without."""

    def make(*names: str, unnamed: int = 0) -> MaskGIT:
        config = dataclasses.replace(tiny_transformer_config, num_classes=len(names) or unnamed)
        return MaskGIT(VQGAN(tiny_tokenizer_config), Transformer(config), names, device="cpu")

    return make


def test_a_name_goes_before_a_number(model: Callable[..., MaskGIT]) -> None:
    digits = model("7", "3", "0", "cat")
    assert [digits.class_number(name) for name in ("7", "3", "0", "cat")] == [0, 1, 2, 3]
    assert [digits.class_number(number) for number in range(4)] == [0, 1, 2, 3]
    assert digits.class_number("1") == 1 and digits.class_number("2") == 2  # no class is called so
    with pytest.raises(ValueError, match=re.escape("label 7 must be in [0, 4): choose one of 7, 3, 0, cat")):
        digits.class_number(7)
    unnamed = model(unnamed=5)
    assert unnamed.class_number("4") == unnamed.class_number(4) == 4


def test_an_unknown_class_is_told_all_there_are(model: Callable[..., MaskGIT]) -> None:
    names = [f"bird no. {i}" for i in range(40)] + ["cat"]
    many = model(*names)
    for label in ("dog", "41", "-1", "1.0", "", "9" * 5000):
        with pytest.raises(ValueError, match=re.escape(f"choose one of {', '.join(names)}")):
            many.class_number(label)
    with pytest.raises(ValueError, match=re.escape("unknown class 'cats': ") + ".*cat; did you mean cat[?]"):
        many.class_number("cats")
    with pytest.raises(ValueError, match="unknown class 'cat': choose a number from 0 to 4"):
        model(unnamed=5).class_number("cat")


def test_on_the_command_line(
    model: Callable[..., MaskGIT], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model("1", "0", "cat").save_pretrained(tmp_path / "model")
    labels: list[Any] = []
    generate = MaskGIT.generate

    def spy(self: MaskGIT, *args: Any, **options: Any) -> Any:
        labels.extend(options["labels"])
        return generate(self, *args, **options)

    monkeypatch.setattr(MaskGIT, "generate", spy)
    words = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--generate", "1", "--steps", "2"]
    for label in ("1", "0", "2", "cat"):
        assert main([*words, "--class", label]) == 0
    assert labels == [0, 1, 2, 2]
    capsys.readouterr()
    assert main([*words, "--class", "dog"]) == 2
    assert "unknown class 'dog': choose one of 1, 0, cat" in capsys.readouterr().err

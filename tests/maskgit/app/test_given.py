"""What people hand in: pictures, masks, paint, boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.app import door, given
from maskgit.data.masks import MaskError


def painted(size: tuple[int, int], box: tuple[int, int, int, int], alpha: int = 1) -> Image.Image:
    layer = Image.new("RGBA", size)
    layer.paste((230, 40, 60, alpha), box)
    return layer


def test_whatever_is_painted_is_the_hole() -> None:
    """However thin the paint."""
    hole, odd = given.hole((32, 24), [painted((32, 24), (5, 6, 9, 11))], None, False)
    assert hole.shape == (24, 32) and hole.sum() == 20 and hole[6:11, 5:9].all() and not odd


def test_paint_has_the_scale_of_what_is_shown() -> None:
    view = given.shown(Image.new("RGB", (32, 24)))
    assert view.size == (512, 384)
    hole, _ = given.hole((32, 24), [painted(view.size, (80, 96, 144, 176))], None, False)
    assert hole.sum() == 20 and hole[6:11, 5:9].all()
    large = given.shown(Image.new("RGB", (4000, 2000)))
    assert large.size == (1024, 512)
    hole, _ = given.hole((4000, 2000), [painted(large.size, (0, 0, 1, 1))], None, False)
    assert hole[0, 0] and 0 < hole.sum() <= 25  # 3.9 pixels wide


def test_a_mask_and_paint_add_up(mask: Path) -> None:
    hole, odd = given.hole((32, 24), [painted((32, 24), (0, 0, 2, 2))], str(mask), False)
    assert hole.sum() == 84 and hole[8:16, 10:20].all() and hole[:2, :2].all() and not odd
    inverted, _ = given.hole((32, 24), [], str(mask), True)
    assert inverted.sum() == 32 * 24 - 80 and not inverted[8:16, 10:20].any()


def test_a_mask_that_may_not_be_what_is_meant_is_said(tmp_path: Path) -> None:
    Image.new("L", (32, 24), 255).save(tmp_path / "white.png")
    _, odd = given.hole((32, 24), [], str(tmp_path / "white.png"), False)
    assert len(odd) == 1 and "covers 100%" in odd[0]


@pytest.mark.parametrize("layers", [[], [Image.new("RGBA", (32, 24))]])
def test_nothing_to_fill(layers: list[Image.Image], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paint over what is to be filled"):
        given.hole((32, 24), layers, None, False)
    Image.new("L", (32, 24)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="covers nothing"):
        given.hole((32, 24), layers, str(tmp_path / "black.png"), False)


def test_the_mask_of_another_picture(tmp_path: Path) -> None:
    Image.new("L", (24, 24), 255).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match="24x24, the image 32x24"):
        given.hole((32, 24), [], str(tmp_path / "mask.png"), False)
    with pytest.raises(MaskError, match="what is painted"):
        given.hole((32, 24), [painted((24, 24), (0, 0, 9, 9))], None, False)


def test_pictures_that_can_t_be_had(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="put in a picture first"):
        given.open_picture(None)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not an image in a known format"):
        given.open_picture(str(tmp_path / "text.png"))
    monkeypatch.setattr(door, "MOST_PIXELS", 32 * 24 - 1)
    with pytest.raises(ValueError, match="32x24 pixels are too many, this page takes 767"):
        given.open_picture(str(picture))
    monkeypatch.setattr(door, "MOST_PIXELS", 32 * 24)
    assert given.open_picture(str(picture)).image.size == (32, 24)


def test_boxes_are_shares_of_the_picture() -> None:
    assert given.box((32, 24), 25, 50, 50, 25) == (8, 12, 24, 18)
    assert given.box((32, 24), 50, 50, 100, 100) == (16, 12, 32, 24)
    for empty in ((0, 0, 0, 50), (100, 0, 50, 50), (-50, 0, 50, 50), (0, 0, 1, 50)):
        with pytest.raises(ValueError, match="nothing of the picture is in it"):
            given.box((32, 24), *empty)


def test_messages_name_files_as_people_do() -> None:
    assert given.named("uploads/x/a b.png: odd", "uploads/x/a b.png", None) == "a b.png: odd"


def test_what_is_shown_has_no_transparency() -> None:
    view = given.shown(Image.new("RGBA", (600, 600), (9, 9, 9, 0)))
    assert view.mode == "RGB" and view.size == (600, 600) and np.asarray(view).min() == 255

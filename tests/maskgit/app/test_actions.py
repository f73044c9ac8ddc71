"""What the buttons do, without a server: what is shown while it goes on, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="needs the extra [app]")

from maskgit.app import actions as module  # noqa: E402
from maskgit.app.actions import OWN, Actions, How  # noqa: E402
from maskgit.app.work import Worker  # noqa: E402
from maskgit.decoding import DECODERS, DecodeConfig  # noqa: E402
from maskgit.pipeline import MaskGIT  # noqa: E402

WHERE = {"crop": "auto", "grow": None, "feather": 0}


@pytest.fixture
def actions(model: MaskGIT) -> Iterator[Actions]:
    worker = Worker(60)
    yield Actions(model, worker)
    worker.close()


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def last(views: Iterator[Any]) -> tuple[Any, ...]:
    """The last view, its files read, as they are there only until the next."""
    for view in views:
        if isinstance(view[0], str):
            result, sliders, variants, steps, status = view
            found = pixels(result), *(list(map(pixels, files)) for files in (sliders, variants, steps)), status
    return found


def test_a_hole_is_filled_and_the_rest_stays(actions: Actions, picture: Path, mask: Path) -> None:
    views = actions.inpaint(str(picture), None, str(mask), False, how=How(**WHERE, steps=3))
    result, (before, after), variants, steps, status = last(views)
    original, hole = pixels(picture), pixels(mask) > 0
    assert (result[~hole] == original[~hole]).all() and (result[hole] != original[hole]).any()
    assert (before == original).all() and (after == result).all() and len(variants) == 1
    assert len(steps) == 3 and steps[0].shape == (16, 16, 3)
    assert status == "Done, with seed 0."


def test_steps_come_one_by_one(actions: Actions, picture: Path, mask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACE", 0)
    views = actions.inpaint(str(picture), None, str(mask), False, how=How(**WHERE | {"crop": "off"}, steps=4))
    shown = [(view[3].selected_index, view[4]) for view in views if isinstance(view[3], gr.Gallery)]
    assert dict(shown) == {0: "25%", 1: "50%", 2: "75%", 3: "100%"}


def test_steps_come_no_faster_than_can_be_seen(
    actions: Actions, picture: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACE", 3600)
    views = list(actions.inpaint(str(picture), None, str(mask), False, how=How(**WHERE, steps=4)))
    assert len(views) <= 3 and len(views[-1][3]) == 4  # at the end all of them


def test_of_many_steps_some_are_shown(
    actions: Actions, picture: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest as they come, and at the end as many as can be told apart, with the last one."""
    monkeypatch.setattr(module, "PACE", 0)
    longest = 0
    for view in actions.inpaint(str(picture), None, str(mask), False, how=How(**WHERE, steps=70)):
        if isinstance(view[3], gr.Gallery):
            longest = max(longest, len(view[3].value))
        elif isinstance(view[3], list):
            names = [Path(path).stem for path in view[3]]
    assert longest == 8
    assert names[0] == "step-1" and names[-1] == "step-70" and 20 < len(names) <= 32


def test_variants_differ_and_the_first_is_the_one_without_others(actions: Actions, picture: Path, mask: Path) -> None:
    given = str(picture), None, str(mask), False
    one, *_ = last(actions.inpaint(*given, how=How(**WHERE, seed=5)))
    result, _, variants, *_ = last(actions.inpaint(*given, how=How(**WHERE, seed=5, variants=3)))
    assert (result == one).all() and (variants[0] == one).all()
    assert len({each.tobytes() for each in variants}) == 3
    other, *_ = last(actions.inpaint(*given, how=How(**WHERE, seed=6)))
    assert (other != one).any()


def test_what_a_picture_carries_is_in_the_result(actions: Actions, tmp_path: Path, mask: Path) -> None:
    """16 bits, and EXIF data; and what can't be kept is said."""
    deep = np.random.default_rng(0).integers(0, 2**16, (24, 32), dtype=np.uint16)
    exif = Image.Exif()
    exif[270] = "mine"
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=exif)
    views = actions.inpaint(str(tmp_path / "deep.png"), None, str(mask), False, how=How(**WHERE))
    for view in views:
        if isinstance(view[0], str):
            result = Image.open(view[0])
            assert result.getexif()[270] == "mine"
            assert (np.asarray(result) == deep)[pixels(mask) == 0].all()
    Image.new("CMYK", (32, 24)).save(tmp_path / "print.tif")
    *_, status = last(actions.inpaint(str(tmp_path / "print.tif"), None, str(mask), False, how=How(**WHERE)))
    assert "The result doesn't have the exact colors of CMYK" in status


def test_a_picture_is_continued(actions: Actions, picture: Path) -> None:
    views = actions.outpaint(str(picture), 25, 0, 50, None, how=How(steps=2, variants=2))
    result, (before, _), variants, steps, _ = last(views)
    assert result.shape == before.shape == (24, 56, 3) and len(variants) == 2 and steps
    assert (result[:, 8:40] == pixels(picture)).all() and (before[:, 8:40] == pixels(picture)).all()


def test_pictures_are_made_from_nothing(actions: Actions, model: MaskGIT) -> None:
    result, _, variants, steps, _ = last(actions.generate(How(label="dog", variants=2, seed=3, steps=4)))
    (same,) = model.generate(1, seed=3, labels=["dog"], steps=4)
    assert (result == np.asarray(same)).all() and len(variants) == 2 and len(steps) == 4


def test_a_class_is_put_into_a_box(actions: Actions, picture: Path) -> None:
    made = [
        last(actions.class_box(str(picture), 25, 25, 50, 50, how=How(**WHERE, label=label)))[0]
        for label in ("cat", "dog")
    ]
    outside = np.ones((24, 32), dtype=bool)
    outside[6:18, 8:24] = False
    assert (made[0] != made[1]).any()
    for result in made:
        assert (result == pixels(picture))[outside].all()


def test_crop_grow_and_feather_are_used(actions: Actions, picture: Path, mask: Path) -> None:
    def fill(**where: Any) -> np.ndarray:
        return last(actions.inpaint(str(picture), None, str(mask), False, how=How(**WHERE | where)))[0]

    original, results = pixels(picture), [fill(), fill(crop="off"), fill(crop="24"), fill(feather=2)]
    assert len({result.tobytes() for result in results}) == 4
    changed = (fill(grow="3") != original).any(-1)
    assert changed[5:19, 7:23].sum() == changed.sum() > 80


@pytest.mark.parametrize("name", [None, "", OWN, *DECODERS])
def test_settings_are_the_decoders_unless_they_are_given(name: str | None) -> None:
    own = DecodeConfig(steps=77)
    preset = DECODERS.get(name or "", own)
    empty = How(decoder=name, steps="", schedule="", order="", guidance_scale="")
    assert empty.config(own) == preset
    changed = How(decoder=name, steps="5", schedule="linear", choice_temperature=0)
    assert changed.config(own) == dataclasses.replace(preset, steps=5, schedule="linear", choice_temperature=0)


# --- errors -----------------------------------------------------------------------------------------------------------


def failure(views: Iterator[Any]) -> str:
    """What is said when it goes wrong; the status line says so too."""
    status = ""
    with pytest.raises(gr.Error) as caught:
        for view in views:
            status = view[4]
    assert not caught.value.print_exception
    assert status == f"**{caught.value.message}**"
    return caught.value.message


@pytest.mark.parametrize(
    "how, message",
    [
        (How(steps=0), "steps must be at least 1"),
        (How(steps="0"), "steps must be at least 1"),
        (How(steps="few"), "steps 'few': must be a number"),
        (How(steps="2.5"), "steps 2.5: must be a whole number"),
        (How(steps="inf"), "steps inf: must be a whole number"),
        (How(seed=0.5), "seed 0.5: must be a whole number"),
        (How(choice_temperature="nan"), "choice_temperature must be at least 0 and finite"),
        (How(decoder="theirs"), "decoder"),
        (How(variants=9), "9 variants: must be from 1 to 8"),
        (How(variants=0), "0 variants"),
        (How(label="cow"), "unknown class 'cow': choose one of cat, dog"),
        (How(softmax_temperature=0), "softmax_temperature must be positive"),
    ],
)
def test_what_can_t_be_done_is_said(how: How, message: str, actions: Actions, picture: Path, mask: Path) -> None:
    assert message in failure(actions.inpaint(str(picture), None, str(mask), False, how=how))


def test_what_is_missing_is_said(actions: Actions, picture: Path, classless: MaskGIT) -> None:
    assert "put in a picture" in failure(actions.inpaint(None, None, None, False, how=How(**WHERE)))
    assert "paint over" in failure(actions.inpaint(str(picture), None, None, False, how=How(**WHERE)))
    assert "how much" in failure(actions.outpaint(str(picture), 0, 0, 0, 0, How()))
    assert "choose the class" in failure(actions.class_box(str(picture), 0, 0, 50, 50, how=How(**WHERE)))
    assert "crop" in failure(actions.class_box(str(picture), 0, 0, 50, 50, How(label="cat", crop="near")))
    without = Actions(classless, actions.worker)
    assert "without classes" in failure(without.generate(How(label="cat")))


def test_files_are_named_and_are_no_markup(actions: Actions, tmp_path: Path) -> None:
    odd = tmp_path / "<b>bold.png"
    odd.write_text("no picture")
    said = failure(actions.outpaint(str(odd), 50, 0, 0, 0, How()))
    assert said.startswith("&lt;b&gt;bold.png: not an image")


def test_too_long_a_run_is_stopped(model: MaskGIT, picture: Path, mask: Path) -> None:
    actions = Actions(model, Worker(0.001))
    views = actions.inpaint(str(picture), None, str(mask), False, how=How(**WHERE, steps=50))
    assert "stopped, as it took more than 0.001 seconds" in failure(views)
    actions.worker.close()

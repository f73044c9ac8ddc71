"""Filling in windows: what stays, what is blended, several answers, steps as they come. Tiny models, random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import box, picture, same, tiny_model

from maskgit.canvas.filling import Canvas
from maskgit.canvas.windows import Window
from maskgit.pipeline import MaskGIT, Step, filling

LARGE = box(150, 90, 40, 20, 110, 75)  # in three levels of windows
SMALL = box(150, 90, 5, 80, 9, 86)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_known_pixels_stay_through_windows(model: MaskGIT, mode: str) -> None:
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (90, 150, bands) if bands > 1 else (90, 150)
    stored = rng.integers(0, 2**16 if mode == "I;16" else 256, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    result = model.inpaint(Image.fromarray(stored), LARGE | SMALL, steps=2, grow=2)
    after = np.asarray(result.image)
    assert {window.again for window in result.windows} == {False, True}
    assert result.image.mode == mode and result.mask.sum() == 74 * 59 + 8 * 10
    assert np.array_equal(after[~result.mask], stored[~result.mask])
    assert (after != stored).reshape(90, 150, -1).any(2)[result.mask].mean() > 0.9


def test_hidden_pixels_have_no_influence_through_windows(model: MaskGIT) -> None:
    scrambled = np.array(picture(150, 90))
    scrambled[LARGE | SMALL] = np.random.default_rng(1).integers(0, 256, (int((LARGE | SMALL).sum()), 3))
    results = [
        model.inpaint(image, LARGE | SMALL, steps=2, seed=1) for image in (picture(150, 90), Image.fromarray(scrambled))
    ]
    assert same(results[0].image, results[1].image)


def test_detail_is_added_to_what_is_coarse() -> None:
    """Of a finer fill, what the coarse one can show already is left out: a shade of its own, a slow change."""
    coarse = np.full((64, 64, 3), 100, dtype=np.uint8)
    ramp = np.linspace(0, 40, 64)[None, :, None] + np.zeros((64, 64, 3))
    stripes = 20 * (np.arange(64) % 2)[None, :, None] + np.zeros((64, 64, 3))
    for fine, change in ((ramp + 90, 0), (stripes + 30, 10)):
        mixed = filling._with_detail(Image.fromarray(coarse), Image.fromarray(fine.astype(np.uint8)))
        off = np.asarray(mixed, dtype=int)[:, 4:-4] - 100
        assert np.abs(np.abs(off) - change).max() <= 2


def test_only_detail_comes_from_finer_windows(model: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    blue = (1, 2, 253)
    monkeypatch.setattr(filling, "_with_detail", lambda coarse, fine: Image.new("RGB", fine.size, blue))
    result = model.inpaint(picture(150, 90), LARGE | SMALL, steps=2, paste=False)
    filled = (np.asarray(result.image) == blue).all(2)
    assert np.array_equal(filled, LARGE), "what is filled coarse to fine, and nothing else"


def test_what_a_model_finds_likely_is_continued_smoothly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model to which all codes are alike leaves a scratch as its surroundings suggest; one that is sure doesn't."""
    model = tiny_model()
    ramp = np.zeros((60, 90, 3), dtype=np.uint8) + np.arange(60, 150, dtype=np.uint8)[None, :, None]
    scratch = box(90, 60, 30, 10, 33, 50)
    monkeypatch.setattr(filling, "_KEPT", 1.0)  # all that the tokenizer loses: with random weights, nearly everything
    masked: list[int] = []
    decode = model._decode
    monkeypatch.setattr(model, "_decode", lambda t, m, *rest: masked.append(int(m.sum())) or decode(t, m, *rest))

    def off(**options: int | str) -> float:
        masked.clear()
        filled = model.inpaint(Image.fromarray(ramp), scratch, steps=2, **options).image
        return float(np.abs(np.asarray(filled, dtype=float) - ramp)[scratch].max())

    weight, bias = model.transformer.output_weights()
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
        assert off() > 5 and 0 < sum(masked) < 20, "with odds of 500 to 31, 6 % of the tokens are decoded"
        monkeypatch.setattr(filling, "_ODDS", 1e9)
        assert off() <= 1 and not sum(masked)
        off(crop="off")  # a hole in a whole picture hides things; what surrounds it says little of them
        assert sum(masked) == 6  # of 8 rows, each 7.5 pixels high
        bias.copy_(torch.linspace(0, 2000, bias.shape[-1]).expand_as(bias))
        assert off() > 5 and sum(masked) == 56, "one code is certain, and no other stays"


def test_windows_dont_depend_on_the_batch(model: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = [picture(150, 90), picture(40, 30, seed=1)], [LARGE | SMALL, box(40, 30, 3, 3, 30, 20)]
    expected = model.inpaint(images, masks, steps=2, seeds=[4, 5], batch_size=16)
    for batch_size in (1, 3):
        results = model.inpaint(images[::-1], masks[::-1], steps=2, seeds=[5, 4], batch_size=batch_size)
        assert all(same(a.image, b.image) for a, b in zip(expected, results[::-1], strict=True))
    monkeypatch.setattr(filling, "MOST_PIXELS", 1)  # large pictures, one at a time
    one_by_one = model.inpaint(images, masks, steps=2, seeds=[4, 5])
    assert all(same(a.image, b.image) for a, b in zip(expected, one_by_one, strict=True))
    assert not same(expected[0].image, model.inpaint(images[0], masks[0], steps=2, seeds=[6]).image)


def test_a_small_hole_costs_what_it_needs(model: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens go through the networks in a large picture as in a small one."""
    encoded: list[int] = []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda images: encoded.append(len(images)) or encode(images))
    for width, height in ((60, 50), (2000, 1500)):
        model.inpaint(picture(width, height), box(width, height, 20, 20, 31, 26), steps=2)
    assert encoded == [1, 1] or encoded[: len(encoded) // 2] == encoded[len(encoded) // 2 :]


def test_crop(model: MaskGIT) -> None:
    image, mask = picture(90, 60), box(90, 60, 30, 20, 34, 25)
    sides = {}
    for crop in ("auto", "off", 32, 500):
        result = model.inpaint(image, mask, steps=2, crop=crop)
        assert np.array_equal(np.asarray(result.image)[~mask], np.asarray(image)[~mask])
        sides[crop] = [window.box[2] - window.box[0] for window in result.windows if not window.again]
    assert sides == {"auto": [16], "off": [90], 32: [32], 500: [60]}
    # A picture of the model's size is one window of all of it.
    own, hole = picture(16, 16), box(16, 16, 4, 4, 9, 9)
    assert same(model.inpaint(own, hole, steps=2).image, model.inpaint(own, hole, steps=2, crop="off").image)


def test_a_model_says_where_it_looks() -> None:
    model, image, mask = tiny_model(), picture(90, 60), box(90, 60, 30, 20, 34, 25)
    assert model.crop == "auto" and model.inpaint(image, mask, steps=1).windows[0].box != (0, 0, 90, 60)
    model.metadata["crop"] = "off"
    assert model.inpaint(image, mask, steps=1).windows == [((0, 0, 90, 60), (0, 0, 90, 60), False)]
    assert len(model.inpaint(image, mask, steps=1, crop="auto").windows) == 1
    # Beyond its borders such a model sees all of the picture's height.
    seen: list[int] = []
    view = Canvas.view

    def watch(canvas: Canvas, window: Window) -> tuple[Image.Image, np.ndarray]:
        seen.append(window.box[3] - window.box[1])
        return view(canvas, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "view", watch)
        model.outpaint(image, (0, 0, 30, 0), steps=1)
    assert seen == [60]
    model.metadata["crop"] = "sideways"
    with pytest.raises(ValueError, match="crop must be auto, off"):
        model.inpaint(image, mask)


def test_variants(model: MaskGIT) -> None:
    images = [picture(40, 30), picture(20, 20, seed=1), picture(9, 9)]
    masks = [box(40, 30, 3, 3, 30, 20), box(20, 20, 5, 5, 15, 15), np.zeros((9, 9), dtype=bool)]
    done: list[float] = []
    results = model.inpaint(images, masks, steps=2, seeds=[1, 2, 3], variants=3, progress=done.append, batch_size=2)
    assert sum(done) == pytest.approx(3)
    alone = model.inpaint(images, masks, steps=2, seeds=[1, 2, 3])
    for image, mask, result, one in zip(images, masks, results, alone, strict=True):
        assert len(result.variants) == 3 and result.image is result.variants[0] and same(result.image, one.image)
        for variant in result.variants:
            assert np.array_equal(np.asarray(variant)[~mask], np.asarray(image)[~mask])
        if mask.any():
            assert len({variant.tobytes() for variant in result.variants}) == 3
    assert [one.image for one in alone] == [one.variants[0] for one in alone] and len(alone[0].variants) == 1


@pytest.mark.parametrize("feather", [0, 1, 3])
def test_growing_and_feathering(model: MaskGIT, feather: int) -> None:
    image, mask = Image.new("RGB", (40, 30), "black"), box(40, 30, 10, 8, 20, 30)  # at the lower border
    result = model.inpaint(image, mask, steps=2, grow=4, feather=feather, paste=False)
    hard = model.inpaint(image, mask, steps=2, grow=4, paste=False)
    assert np.array_equal(result.mask, box(40, 30, 6, 4, 24, 30))
    ratio = np.asarray(result.image).sum(2) / np.asarray(hard.image).sum(2).clip(1)
    inside = np.asarray(hard.image).sum(2) > 150
    # Of the picture, which is black, the share falls from the edge on; what was hidden at first is all new.
    for depth in range(1, 5):
        ring = box(40, 30, 5 + depth, 3 + depth, 25 - depth, 30) & ~box(40, 30, 6 + depth, 4 + depth, 24 - depth, 30)
        assert ratio[ring & inside] == pytest.approx(min(1, depth / (feather + 1)), abs=0.04)
    assert ratio[mask & inside] == pytest.approx(1)


def test_feather_alone_grows_the_hole(model: MaskGIT) -> None:
    result = model.inpaint(picture(40, 30), box(40, 30, 10, 8, 20, 15), steps=2, feather=3)
    assert np.array_equal(result.mask, box(40, 30, 7, 5, 23, 18))


def test_steps_as_they_come(model: MaskGIT) -> None:
    heard: list[tuple[int, Step]] = []
    images, masks = [picture(40, 30), picture()], [box(40, 30, 3, 3, 8, 7), box(16, 16, 2, 2, 8, 8)]
    results = model.inpaint(
        images, masks, steps=3, save_steps=True, variants=2, on_step=lambda i, step: heard.append((i, step))
    )
    assert [i for i, _ in heard] == [0, 1] * 3
    for i, result in enumerate(results):
        assert [step for number, step in heard if number == i] == result.steps and len(result.steps) == 3
    first = results[0].first()
    assert first.image.size == first.mask.shape[::-1] == (16, 16) and first.steps == results[0].steps
    assert np.array_equal(np.asarray(first.image), np.asarray(results[0].image.crop(results[0].windows[0].box)))
    assert results[1].first() is results[1]
    wide: list[int] = []
    model.outpaint(images, [(0, 0, 4, 0), (0, 0, 0, 4)], steps=2, on_step=lambda i, step: wide.append(i))
    assert sorted(wide) == [0, 0, 1, 1]


def test_one_label_for_all() -> None:
    model = tiny_model(num_classes=3)
    a, b = model.generate(2, labels="class 1", seeds=[1, 1])
    assert same(a, b) and same(a, model.generate(1, labels=[1], seeds=[1])[0])


def test_to_and_repr() -> None:
    model = tiny_model(num_classes=2, precision="float32")
    before = model.generate(1)[0]
    assert model.to("cpu") is model and same(model.generate(1)[0], before)
    assert repr(model) == ("MaskGIT(16x16 pixels, 64 tokens of 32 codes, 2 classes, 0.0 M parameters, float32 on cpu)")
    with pytest.raises(ValueError, match="device 'toaster' can't be used here"):
        model.to("toaster")

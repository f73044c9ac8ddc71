"""MaskGIT: hiding, pasting, batches, seeds, what a picture carries. Tiny models with random weights."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_pipeline import box, picture, same, tiny_model

from maskgit.canvas import holes
from maskgit.pipeline import MaskGIT, image_seed
from maskgit.tokenizer import VQGAN


@pytest.mark.parametrize("size", [(16, 16), (50, 31), (7, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("paste", [True, False], ids=["paste", "bare"])
def test_hidden_pixels_have_no_influence(model: MaskGIT, size: tuple[int, int], paste: bool) -> None:
    width, height = size
    mask = box(width, height, width // 4, height // 4, width // 2, height // 2)
    image, scrambled = picture(width, height), np.array(picture(width, height))
    scrambled[mask] = np.random.default_rng(1).integers(0, 256, (mask.sum(), 3))
    assert not same(image, Image.fromarray(scrambled))
    a, b = model.inpaint(
        [image, Image.fromarray(scrambled)], [mask, mask], seeds=[5, 5], paste=paste, save_steps=True, steps=3
    )
    assert same(a.image, b.image)
    for one, other in zip(a.steps, b.steps, strict=True):
        assert same(one.image, other.image) and np.array_equal(one.masked, other.masked)


def test_encodes_once_and_decodes_once(model: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, decoded = [], []
    encode, decode = VQGAN.encode, VQGAN.decode
    monkeypatch.setattr(VQGAN, "encode", lambda self, images: encoded.append(len(images)) or encode(self, images))
    monkeypatch.setattr(VQGAN, "decode", lambda self, tokens: decoded.append(len(tokens)) or decode(self, tokens))
    images = [picture(seed=i) for i in range(5)]
    masks = [box(16, 16, 4, 4, 9, 9)] * 4 + [np.zeros((16, 16), dtype=bool)]
    model.inpaint(images, masks, batch_size=3, steps=4)
    assert (sum(encoded), sum(decoded)) == (4, 4)
    model.inpaint(images[:1], masks[:1], steps=4, save_steps=True)
    assert (sum(encoded), sum(decoded)) == (5, 8)  # the last step's pixels are the result's


def test_known_pixels_come_back(model: MaskGIT) -> None:
    image = picture(48, 32)
    mask = box(48, 32, 20, 12, 28, 20)  # a patch is 6x4 pixels of this image
    (result,) = model.inpaint([image], [mask], steps=2)
    assert result.image.size == (48, 32)
    before, after = np.asarray(image), np.asarray(result.image)
    assert np.array_equal(before[~mask], after[~mask])
    (squeezed,) = model.inpaint([image], [mask], steps=2, crop="off")
    (bare,) = model.inpaint([image], [mask], steps=2, paste=False, crop="off")
    assert same(holes.paste_known(image, bare.image, mask), squeezed.image)
    assert not np.array_equal(np.asarray(bare.image)[~mask], before[~mask])


def test_token_is_masked_if_any_pixel_is(model: MaskGIT) -> None:
    one = box(16, 16, 5, 2, 6, 3)
    (result,) = model.inpaint([picture()], [one], steps=2)
    assert np.argwhere(result.masked).tolist() == [[1, 2]]
    # One pixel of a large image is far less than a pixel of the model's.
    large = box(1000, 800, 999, 799, 1000, 800)
    (result,) = model.inpaint([picture(1000, 800)], [large], steps=2)
    assert np.argwhere(result.masked).tolist() == [[7, 7]]


def test_empty_mask_returns_the_original_without_the_model(model: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_fill", None)
    image = picture(33, 21)
    (result,) = model.inpaint([image], [np.zeros((21, 33), dtype=bool)], save_steps=True)
    assert same(result.image, image) and result.steps == [] and not result.masked.any()


def test_full_mask_generates(model: MaskGIT) -> None:
    full = np.ones((16, 16), dtype=bool)
    a, b = model.inpaint([picture(), picture(seed=1)], [full, full], seeds=[3, 3])
    assert same(a.image, b.image)
    (generated,) = model.generate(1, seeds=[3])
    assert same(a.image, generated)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_same_seed_same_picture_whatever_the_batch(precision: str) -> None:
    model = tiny_model(precision=precision)
    rng = np.random.default_rng(0)
    images = [picture(*rng.integers(10, 40, 2), seed=i) for i in range(7)]
    masks = [rng.random(image.size[::-1]) < 0.1 for image in images]
    together = model.inpaint(images, masks, seed=9, batch_size=16)
    for size in (1, 2, 3):
        results = model.inpaint(images, masks, seed=9, batch_size=size)
        assert all(same(a.image, b.image) for a, b in zip(together, results, strict=True))
    order = [4, 0, 6, 2, 1, 5, 3]
    shuffled = model.inpaint(
        [images[i] for i in order], [masks[i] for i in order], seeds=[image_seed(9, i) for i in order], batch_size=4
    )
    assert all(same(together[i].image, result.image) for i, result in zip(order, shuffled, strict=True))
    other = model.inpaint(images, masks, seed=10)
    assert not all(same(a.image, b.image) for a, b in zip(together, other, strict=True))


def test_changed_weights_are_used() -> None:
    model = tiny_model()
    before = model.generate(1)[0]
    with torch.no_grad():
        for weight in model.transformer.parameters():
            weight.mul_(-0.5)
    assert not same(model.generate(1)[0], before)
    fresh = MaskGIT(model.tokenizer, model.transformer, device="cpu")
    assert same(model.generate(1)[0], fresh.generate(1)[0])


def test_steps_are_kept(model: MaskGIT) -> None:
    (result,) = model.inpaint([picture(40, 20)], [box(40, 20, 0, 0, 20, 20)], steps=5, save_steps=True)
    left = [int(step.masked.sum()) for step in result.steps]
    assert len(left) == 5 and left == sorted(left, reverse=True) and left[-1] == 0
    assert all(step.image.size == (16, 16) and step.masked.shape == (8, 8) for step in result.steps)
    assert not any((step.masked & ~result.masked).any() for step in result.steps)


def test_progress_adds_up_to_the_images(model: MaskGIT) -> None:
    done: list[float] = []
    masks = [box(16, 16, 0, 0, 5, 5)] * 4 + [np.zeros((16, 16), dtype=bool)]
    model.inpaint([picture(seed=i) for i in range(5)], masks, batch_size=3, steps=6, stop_after=4, progress=done.append)
    assert sum(done) == pytest.approx(5) and len(done) == 1 + 2 * 4
    done.clear()
    model.generate(5, batch_size=2, steps=3, progress=done.append)
    assert sum(done) == pytest.approx(5)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_known_pixels_keep_their_mode_and_bits(model: MaskGIT, mode: str) -> None:
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (16, 20, bands) if bands > 1 else (16, 20)
    stored = rng.integers(0, 2**16 if mode == "I;16" else 256, shape, dtype=np.uint16 if mode == "I;16" else np.uint8)
    image, mask = Image.fromarray(stored), box(20, 16, 4, 4, 9, 9)
    (result,) = model.inpaint([image], [mask], steps=2)
    assert result.image.mode == mode and np.array_equal(np.asarray(result.image)[~mask], stored[~mask])
    assert not np.array_equal(np.asarray(result.image)[mask], stored[mask])
    if mode in ("LA", "RGBA"):
        assert (np.asarray(result.image)[mask][:, -1] == 255).all()
    (outpainted,) = model.outpaint([image], [(3, 2, 1, 0)], steps=2)
    assert outpainted.mode == mode and outpainted.size == (24, 18)
    assert np.array_equal(np.asarray(outpainted)[2:, 3:23], stored)
    (unchanged,) = model.inpaint([image], [~(mask | ~mask)])
    assert unchanged.image.mode == mode and unchanged.image.tobytes() == image.tobytes()
    (bare,) = model.inpaint([image], [mask], steps=2, paste=False)
    assert bare.image.mode == mode


def test_what_is_transparent_is_white_to_the_model(model: MaskGIT) -> None:
    mask = box(16, 16, 4, 4, 9, 9)
    (clear,) = model.inpaint([Image.new("RGBA", (16, 16), (255, 0, 0, 0))], [mask], steps=2)
    (white,) = model.inpaint([Image.new("RGB", (16, 16), "white")], [mask], steps=2)
    assert same(clear.original, white.original)
    assert np.array_equal(np.asarray(clear.image)[mask][:, :3], np.asarray(white.image)[mask])
    assert clear.image.getpixel((15, 15)) == (255, 0, 0, 0)


def phone(orientation: int) -> Image.Image:
    """A picture as `Image.open` gives it, with an EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture(20, 12).save(file, "PNG", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_photo_is_filled_upright(model: MaskGIT, orientation: int, tmp_path: Path) -> None:
    shown = ImageOps.exif_transpose(phone(orientation))
    mask = box(*shown.size, 2, 3, 6, 8)
    (expected,) = model.inpaint([shown], [mask], steps=2)
    (result,) = model.inpaint([phone(orientation)], [mask], steps=2)
    result.image.save(tmp_path / "a.png", exif=result.image.getexif())
    with Image.open(tmp_path / "a.png") as written:
        assert same(written, expected.image) and 0x0112 not in written.getexif()
    assert np.array_equal(np.asarray(result.image)[~mask], np.asarray(shown)[~mask])
    (outpainted,) = model.outpaint([phone(orientation)], [(0, 0, 5, 0)], steps=2)
    assert same(outpainted.crop((0, 0, *shown.size)), shown)
    # A mask that can only be of the stored picture.
    if orientation >= 5:
        stored = box(20, 12, 1, 2, 6, 4)
        (turned,) = model.inpaint([phone(orientation)], [stored], steps=2)
        assert turned.mask.shape == (20, 12) and turned.mask.sum() == 10
        assert same(turned.image, model.inpaint([shown], [turned.mask], steps=2)[0].image)


def test_what_results_lack_is_a_warning(model: MaskGIT, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    mask = box(16, 16, 4, 4, 9, 9)
    lost = r"image 1 \(.*a.gif\): the result won't have all frames or pages but number 1"
    with pytest.warns(UserWarning, match=lost) as caught, Image.open(tmp_path / "a.gif") as moving:
        model.inpaint([picture(), moving], [mask, mask], steps=2)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="image 0: the result won't have the exact colors of CMYK") as caught:
        model.outpaint([Image.new("CMYK", (16, 16))], [(0, 0, 1, 0)], steps=2)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_memory_for_each_pixel_is_bounded(model: MaskGIT) -> None:
    """It was about 90 bytes; the caller's image and mask, 5 more, aren't counted here."""

    def kilobytes(what: str) -> int:
        return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    image = Image.new("RGB", (3000, 2000), "red")
    mask = np.zeros((2000, 3000), dtype=bool)
    mask[::7, ::3] = True
    small = box(3000, 2000, 700, 500, 740, 560)
    model.inpaint([picture()], [box(16, 16, 4, 4, 9, 9)], steps=1)  # what is done once only, and kept
    for hole, crop, most in ((mask, "off", 60), (small, "auto", 30)):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            pytest.skip("only Linux tells the peak")
        before = kilobytes("VmRSS")
        model.inpaint([image], [hole], steps=1, crop=crop)
        assert 1024 * (kilobytes("VmHWM") - before) < most * 3000 * 2000


def test_outpainting(model: MaskGIT) -> None:
    images = [picture(16, 16), picture(24, 40, seed=1), picture(9, 9, seed=2)]
    margins = [(0, 0, 30, 0), (5, 6, 7, 8), (0, 0, 0, 0)]
    done: list[float] = []
    results = model.outpaint(images, margins, seeds=[4, 5, 6], steps=2, progress=done.append)
    assert [result.size for result in results] == [(46, 16), (36, 54), (9, 9)]
    assert sum(done) == pytest.approx(3)
    for image, result, (left, top, _, _) in zip(images, results, margins, strict=True):
        inside = np.asarray(result)[top : top + image.height, left : left + image.width]
        assert np.array_equal(inside, np.asarray(image))
    assert same(results[2], images[2])
    # A picture depends on its own seed only, and on that it does.
    assert same(model.outpaint(images[1:2], margins[1:2], seeds=[5], steps=2)[0], results[1])
    assert not same(model.outpaint(images[1:2], margins[1:2], seeds=[7], steps=2)[0], results[1])

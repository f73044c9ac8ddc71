"""MaskGIT: model folders, hiding, pasting, seeds. Tiny models with random weights: 16x16 pixels, 8x8 tokens."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from maskgit.canvas import holes
from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.decoding import DecodeConfig
from maskgit.network.folder import ModelError, load_tokenizer, save_tokenizer
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT, image_seed
from maskgit.pipeline.arguments import resolve_precision
from maskgit.tokenizer import VQGAN

TOKENIZER = TokenizerConfig(
    image_size=16,
    codebook_size=32,
    codebook_dim=4,
    latent_channels=8,
    stem_channels=8,
    encoder=(Stage(8, 1, resample=True), Stage(8, 1)),
    decoder=(Stage(8, 1, resample=True), Stage(8, 1)),
    groups=4,
)


def tiny_model(num_classes: int = 0, **options) -> MaskGIT:
    torch.manual_seed(0)
    transformer = Transformer(
        TransformerConfig(32, 64, dim=32, depth=1, heads=2, mlp_dim=64, dropout=0.0, num_classes=num_classes)
    )
    # As initialised, what comes out hardly depends on what goes in, and no test would notice a mistake.
    for weight in transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    tokenizer = VQGAN(TOKENIZER)
    torch.nn.init.normal_(tokenizer.codebook.weight)
    names = [f"class {i}" for i in range(num_classes)]
    return MaskGIT(tokenizer, transformer, names, {"note": "tiny"}, device="cpu", **options)


@pytest.fixture(scope="module")
def model() -> MaskGIT:
    return tiny_model()


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box(width: int, height: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


# --- inpainting -------------------------------------------------------------------------------------------------------


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
    (bare,) = model.inpaint([image], [mask], steps=2, paste=False)
    assert same(holes.paste_known(image, bare.image, mask), result.image)
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
    monkeypatch.setattr(model, "_inpaint_batch", None)
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


def test_image_seed_never_changes() -> None:
    assert image_seed(0, 0) == 5857645148978988075
    assert image_seed(0, "photos/ä.jpg") == 6531358237039045298
    assert len({image_seed(seed, key) for seed in range(10) for key in range(10)}) == 100


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
    model.inpaint([picture()], [box(16, 16, 4, 4, 9, 9)], steps=1)  # what is done once only, and kept
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("only Linux tells the peak")
    before = kilobytes("VmRSS")
    model.inpaint([image], [mask], steps=1)
    assert 1024 * (kilobytes("VmHWM") - before) < 60 * 3000 * 2000


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_named(model: MaskGIT, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"image 1 has no pixels: it is {size[0]}x{size[1]}"):
        model.inpaint([picture(), Image.new("I", size)], [box(16, 16, 0, 0, 1, 1), np.ones(size[::-1], dtype=bool)])
    with pytest.raises(ValueError, match="image 0 has no pixels"):
        model.outpaint([Image.new("RGB", size)], [(1, 1, 1, 1)])


def test_labels() -> None:
    model = tiny_model(num_classes=3)
    a, b, c = model.generate(3, labels=["class 1", 1, None], seeds=[1, 1, 1])
    assert same(a, b) and not same(a, c)
    assert same(c, model.generate(1, seeds=[1])[0])
    for labels, reason in ((["cat"], "unknown class 'cat'"), ([3], r"label 3 must be in \[0, 3\)"), ([], "0 labels")):
        with pytest.raises(ValueError, match=reason):
            model.generate(1, labels=labels)
    with pytest.raises(ValueError, match="without classes"):
        tiny_model().generate(1, labels=[0])


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


def test_outpainting_errors(model: MaskGIT) -> None:
    with pytest.raises(ValueError, match="margins must be at least 0"):
        model.outpaint([picture()], [(0, -1, 0, 0)])
    with pytest.raises(ValueError, match="1 images, but 2 margins"):
        model.outpaint([picture()], [(0, 0, 1, 0)] * 2)
    with pytest.raises(ValueError, match="without classes"):
        model.outpaint([picture()], [(0, 0, 0, 0)], labels=[0])


def test_wrong_arguments_are_named(model: MaskGIT) -> None:
    mask = box(16, 16, 4, 4, 9, 9)
    cases = [
        (dict(masks=[]), "1 images, but 0 masks"),
        (dict(masks=[mask[:8]]), r"mask 0 must be a bool array \[16, 16\] as its image, got bool \[8, 16\]"),
        (dict(masks=[mask.astype(np.uint8)]), "got uint8"),
        (dict(seeds=[1, 2]), "1 images, but 2 seeds"),
        (dict(seeds=[2**63]), "isn't a signed 64-bit integer"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(schedule="sine"), "sine"),
        (dict(stepz=3), "unknown decoding option"),
    ]
    for arguments, reason in cases:
        with pytest.raises(ValueError, match=reason):
            model.inpaint([picture()], **{"masks": [mask], **arguments})
    for options, reason in (
        (dict(precision="fp8"), "precision 'fp8': choose one of auto, float32, bf16, fp16"),
        (dict(precision="fp16"), "precision 'fp16' needs a GPU"),
        (dict(kernels="cuda"), "backend"),
    ):
        with pytest.raises(ValueError, match=reason):
            tiny_model(**options)
    for device in ("cuda:99", "toaster"):
        with pytest.raises(ValueError, match=f"device '{device}' can't be used here"):
            MaskGIT(model.tokenizer, model.transformer, device=device)


def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for computes_bf16, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, it=computes_bf16: it)
        assert resolve_precision("auto", gpu) == expected
        for asked in ("float32", "bf16", "fp16"):
            assert resolve_precision(asked, gpu) == asked


# --- hiding and pasting -----------------------------------------------------------------------------------------------


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


def test_cells_with_holes() -> None:
    mask = np.zeros((10, 7), dtype=bool)
    mask[9, 0] = True
    assert np.argwhere(holes.cells_with_holes(mask, 5, 7)).tolist() == [[4, 0]]
    assert np.argwhere(holes.cells_with_holes(mask, 20, 7)).tolist() == [[18, 0], [19, 0]]  # cells within a pixel
    # Cell borders at 3.33 and 6.67: pixel 3 lies in two cells.
    mask[:] = False
    mask[3] = True
    assert holes.cells_with_holes(mask, 3, 1)[:, 0].tolist() == [True, True, False]


def test_pasted_fill_is_in_tune_with_its_surroundings() -> None:
    image, mask = picture(40, 30), box(40, 30, 7, 5, 22, 19)
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


# --- model folders ----------------------------------------------------------------------------------------------------


def test_save_and_load(model: MaskGIT, tmp_path) -> None:
    model.save_pretrained(tmp_path / "a" / "model")
    loaded = MaskGIT.from_pretrained(tmp_path / "a" / "model", device="cpu")
    assert loaded.metadata == {"note": "tiny"} and loaded.tokenizer.config == TOKENIZER
    assert same(model.generate(1)[0], loaded.generate(1)[0])
    assert not loaded.transformer.training and not loaded.tokenizer.codebook.weight.requires_grad
    assert all(parameter.requires_grad for parameter in loaded.transformer.parameters())
    assert sorted(path.name for path in (tmp_path / "a" / "model").iterdir()) == [
        "config.json",
        "tokenizer.safetensors",
        "transformer.safetensors",
    ]


def test_a_model_says_how_it_decodes(model: MaskGIT, tmp_path) -> None:
    own = DecodeConfig(steps=3, softmax_temperature=0.5, choice_temperature=1.0)
    opinionated = MaskGIT(model.tokenizer, model.transformer, decoding=own, device="cpu")
    opinionated.save_pretrained(tmp_path)
    loaded = MaskGIT.from_pretrained(tmp_path, device="cpu")
    assert loaded.decoding == own and model.decoding == DecodeConfig()
    assert same(loaded.generate(1)[0], model.generate(1, config=own)[0])
    assert same(loaded.generate(1, steps=2)[0], model.generate(1, config=own, steps=2)[0])
    edit(tmp_path / "config.json", decoding={"steps": 0})
    with pytest.raises(ModelError, match="config.json: steps must be at least 1"):
        MaskGIT.from_pretrained(tmp_path, device="cpu")


def test_half_precision_on_disk(model: MaskGIT, tmp_path) -> None:
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "transformer.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = MaskGIT.from_pretrained(tmp_path / "half", device="cpu")
    weight = loaded.transformer.position_embedding
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.transformer.position_embedding.half().float())
    large = tiny_model()
    torch.nn.init.constant_(large.transformer.bias, 1e6)
    with pytest.raises(ModelError, match="bias has values that torch.float16 can't hold"):
        large.save_pretrained(tmp_path / "large", dtype=torch.float16)
    assert not (tmp_path / "large").exists()


def test_tokenizer_folder(model: MaskGIT, tmp_path) -> None:
    save_tokenizer(tmp_path, model.tokenizer)
    loaded = load_tokenizer(tmp_path)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), model.tokenizer.encode(images))
    with pytest.raises(ModelError, match="holds a tokenizer only"):
        MaskGIT.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).config == TOKENIZER


def edit(path, **changes) -> None:
    config = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(config))


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json: no such file"),
    "no weights": (lambda f: (f / "tokenizer.safetensors").unlink(), r"tokenizer.safetensors: no such file"),
    "truncated": (lambda f: truncate(f / "transformer.safetensors"), "transformer.safetensors: damaged"),
    "bit": (lambda f: flip_a_bit(f / "transformer.safetensors"), "transformer.safetensors: damaged, or from another"),
    "not json": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "other json": (lambda f: (f / "config.json").write_text("[]"), "config.json: not a model's configuration"),
    "version": (lambda f: edit(f / "config.json", format_version=2), "format_version is 2, this release reads 1"),
    "field": (lambda f: edit(f / "config.json", colour=1), "config.json: unknown fields colour"),
    "type": (lambda f: edit(f / "config.json", tokenizer=[]), "tokenizer must be a JSON object"),
    "inner field": (lambda f: edit(f / "config.json", **{"transformer.wings": 2}), "config.json: .*wings"),
    "inner type": (lambda f: edit(f / "config.json", **{"transformer.dim": "x"}), "config.json: "),
    "parts": (lambda f: edit(f / "config.json", **{"transformer.codebook_size": 31}), "codebook_size is 32 in the"),
    "shape": (
        lambda f: edit(f / "config.json", **{"transformer.mlp_dim": 63}),
        r"mlp.0.bias has shape \[64\], .* should be \[63\]",
    ),
    "missing": (lambda f: edit(f / "config.json", **{"transformer.depth": 2}), r"tensors are missing: blocks.1.*more"),
    "extra": (lambda f: edit(f / "config.json", **{"transformer.norm": "post"}), "2 tensors don't belong"),
    "names": (lambda f: edit(f / "config.json", class_names=["a"]), "1 class names, but the transformer has 0"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused(model: MaskGIT, tmp_path, name: str) -> None:
    damage, reason = DAMAGE[name]
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        MaskGIT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_of_two_saves_are_refused(model: MaskGIT, tmp_path) -> None:
    model.save_pretrained(tmp_path / "a")
    other = tiny_model()
    torch.nn.init.normal_(other.tokenizer.codebook.weight)
    other.save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.safetensors").replace(tmp_path / "a" / "tokenizer.safetensors")
    with pytest.raises(ModelError, match="another save"):
        MaskGIT.from_pretrained(tmp_path / "a")


def test_failed_save_leaves_the_old_model(model: MaskGIT, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        tiny_model().save_pretrained(tmp_path, dtype=torch.float16)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_hub(model: MaskGIT, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "snapshot")
    monkeypatch.chdir(tmp_path)
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda repo, allow_patterns: str(tmp_path / "snapshot")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert same(MaskGIT.from_pretrained("someone/some-model").generate(1)[0], model.generate(1)[0])

    def fail(repo: str, allow_patterns: list[str]) -> str:
        raise OSError("401 Client Error.\nlong explanation")

    hub.snapshot_download = fail  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="someone/some-model: no such model folder, .*: 401 Client Error.$"):
        MaskGIT.from_pretrained("someone/some-model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="pip install huggingface_hub"):
        MaskGIT.from_pretrained("someone/some-model")
    with pytest.raises(ModelError, match="no such model folder"):
        MaskGIT.from_pretrained(tmp_path / "nothing" / "here")


def test_parts_that_do_not_fit(model: MaskGIT) -> None:
    transformer = Transformer(TransformerConfig(32, 16, dim=32, depth=1, heads=2, mlp_dim=64))
    with pytest.raises(ModelError, match="num_tokens is 64 in the tokenizer and 16 in the transformer"):
        MaskGIT(model.tokenizer, transformer)

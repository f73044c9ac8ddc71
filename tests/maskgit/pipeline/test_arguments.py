"""What users pass: seeds that never change, labels, and what is wrong is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import box, picture, same, tiny_model

from maskgit.pipeline import MaskGIT, image_seed
from maskgit.pipeline.arguments import resolve_precision


def test_image_seed_never_changes() -> None:
    assert image_seed(0, 0) == 5857645148978988075
    assert image_seed(0, "photos/ä.jpg") == 6531358237039045298
    assert len({image_seed(seed, key) for seed in range(10) for key in range(10)}) == 100


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
        (dict(masks=[mask[:8]]), r"mask 0 must be .*; its image is \[16, 16\], got bool \[8, 16\]"),
        (dict(masks=[mask.astype(np.int64)]), "got int64"),
        (dict(crop="on"), "crop must be auto, off, or a side of at least 8 pixels, got 'on'"),
        (dict(crop=7), "crop must be .*, got 7"),
        (dict(crop=True), "crop must be .*, got True"),
        (dict(grow=-1), "grow must be at least 0, got -1"),
        (dict(feather=-2), "feather must be at least 0, got -2"),
        (dict(grow=2, feather=3), "feather 3 is more than grow 2"),
        (dict(variants=0), "variants must be at least 1, got 0"),
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

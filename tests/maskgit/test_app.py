"""The web page: what is painted becomes the hole, and the page answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.app import NO_CLASS, build, painted
from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN
from maskgit.transformer import Transformer


def editor(size: tuple[int, int] = (20, 12)) -> dict[str, object]:
    layer = np.zeros((size[1], size[0], 4), dtype=np.uint8)
    layer[3:7, 5:9] = (0, 0, 0, 200)
    return {"background": Image.new("RGB", size, "red"), "layers": [Image.fromarray(layer)]}


def test_what_is_painted_is_the_hole() -> None:
    image, mask = painted(editor())
    assert image.size == (20, 12)
    assert mask.sum() == 16 and mask[3:7, 5:9].all()


@pytest.mark.parametrize("value", [None, {"background": None, "layers": []}])
def test_no_picture_is_an_error(value: dict[str, object] | None) -> None:
    with pytest.raises(ValueError, match="picture"):
        painted(value)


def test_nothing_painted_is_an_error() -> None:
    with pytest.raises(ValueError, match="paint"):
        painted({**editor(), "layers": []})


@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=["without classes", "with classes"])
def test_the_page_fills_the_hole(classes: tuple[str, ...]) -> None:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(
        image_size=16,
        codebook_size=16,
        codebook_dim=4,
        latent_channels=8,
        stem_channels=8,
        encoder=(Stage(8, 1, resample=True), Stage(8, 1)),
        decoder=(Stage(8, 1, resample=True), Stage(8, 1)),
        groups=4,
    )
    transformer = TransformerConfig(
        codebook_size=16, num_tokens=64, dim=32, depth=1, heads=2, mlp_dim=32, num_classes=len(classes)
    )
    page = build(MaskGIT(VQGAN(tokenizer), Transformer(transformer), classes, device="cpu"))
    (fill,) = [function.fn for function in page.fns.values() if function.api_name == "fill"]
    for label in range(NO_CLASS, len(classes)):
        image, steps = fill(editor(), label, 2.0, 3, "cosine", "confidence", 1.0, 4.5, 0)
        assert image.size == (20, 12) and len(steps) == 3

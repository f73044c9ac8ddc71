"""Attention and confidence maps, against both computed naively."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.config import HaltonConfig, Stage, TokenizerConfig, TransformerConfig
from maskgit.decoding import DECODERS, DecodeConfig
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.pictures import maps
from maskgit.pipeline import InpaintResult, MaskGIT, Step
from maskgit.tokenizer import VQGAN

KINDS = {
    "pre": TransformerConfig(32, 16, dim=32, depth=3, heads=2, mlp_dim=48),
    "post": TransformerConfig(32, 16, dim=32, depth=3, heads=4, mlp_dim=48, norm="post"),
    "pre, classes": TransformerConfig(32, 16, dim=32, depth=2, heads=2, mlp_dim=48, num_classes=3),
    "post, classes": TransformerConfig(32, 16, dim=48, depth=2, heads=3, mlp_dim=48, norm="post", num_classes=3),
    "pre, normed": TransformerConfig(32, 16, dim=32, depth=2, heads=2, mlp_dim=48, qk_norm=True),
    "halton": HaltonConfig(
        codebook_size=32, num_tokens=16, dim=32, depth=2, heads=2, mlp_dim=48, num_classes=3, registers=2
    ),
}


def make(config: TransformerConfig | HaltonConfig) -> Transformer | HaltonTransformer:
    transformer = HaltonTransformer(config) if isinstance(config, HaltonConfig) else Transformer(config)
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return transformer.eval()


def model_of(config: TransformerConfig | HaltonConfig, **options) -> MaskGIT:
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True))
    return MaskGIT(
        VQGAN(TokenizerConfig(16, 32, 4, 8, 8, stages, stages, groups=4)), make(config), device="cpu", **options
    )


def inpainted(model: MaskGIT, config: DecodeConfig, label: int | None = None) -> InpaintResult:
    rng = np.random.default_rng()
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:, :12] = True  # 9 of the 16 tokens
    labels = None if label is None else [label]
    (result,) = model.inpaint(
        [image], [mask], config=config, labels=labels, seed=int(rng.integers(99)), save_steps=True
    )
    return result


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_is_the_softmax_of_the_projection(kind: str) -> None:
    config = KINDS[kind]
    transformer = make(config)
    inputs, outputs = [], []

    def note(_, arguments, out) -> None:
        inputs.append(arguments[0])
        outputs.append(out)

    for block in transformer.blocks:
        block.attention.register_forward_hook(note)
    tokens = torch.randint(config.codebook_size + 1, (2, 16))
    labels = torch.tensor([0, 2]) if config.num_classes else None
    length = 16 + (2 if kind == "halton" else 1 if config.num_classes else 0)
    with maps.record_attention(transformer, range(length)) as layers:
        logits = transformer(tokens, labels)
    assert torch.equal(transformer(tokens, labels), logits) and len(layers) == config.depth  # no longer listening
    for block, x, out, weights in zip(transformer.blocks, inputs, outputs, layers, strict=False):
        assert weights.shape == (2, config.heads, length, length) and weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, config.heads, length))
        attention, width = block.attention, config.dim // config.heads
        rows = attention.qkv.weight.split(config.dim)
        bias = torch.zeros(3 * config.dim) if attention.qkv.bias is None else attention.qkv.bias
        q, k, v = (x @ part.T + offset for part, offset in zip(rows, bias.split(config.dim), strict=True))
        if kind in ("halton", "pre, normed"):
            q, k = (part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() for part in (q, k))
        mixed = []
        for head in range(config.heads):
            mine = slice(head * width, (head + 1) * width)
            scores = q[..., mine] @ k[..., mine].transpose(1, 2) / math.sqrt(width)
            expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
            torch.testing.assert_close(weights[:, head], expected)
            mixed.append(weights[:, head] @ v[..., mine])
        # The weights are those that the layer itself used.
        torch.testing.assert_close(attention.proj(torch.cat(mixed, -1)), out, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_weights_are_float32_under_autocast() -> None:
    transformer = make(KINDS["pre"])
    with torch.autocast("cpu", dtype=torch.bfloat16), maps.record_attention(transformer, [3, 7]) as layers:
        transformer(torch.randint(33, (1, 16)))
    for weights in layers:
        assert weights.shape == (1, 2, 2, 16) and weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 2))


@pytest.mark.parametrize("kind", ["post", "pre, classes"])
@torch.no_grad()
def test_maps_are_of_what_the_model_saw(kind: str) -> None:
    """Each step's row of attention, from a pass of its own over the tokens that the step started from."""
    config = KINDS[kind]
    model = model_of(config, precision="float32")
    label = 1 if config.num_classes else None
    decoding = DecodeConfig(steps=4)
    result = inpainted(model, decoding, label)
    found = maps.decoding_maps(model, result, decoding, label=label, query=(2, 1))
    assert found.query == (2, 1) and found.attention.shape == (4, config.depth, 4, 4)
    masked, tokens = result.masked, result.steps[0].tokens
    for step, state in enumerate(result.steps):
        held = torch.from_numpy(np.where(masked, 32, tokens)).reshape(1, 16)
        labels = None if label is None else torch.tensor([label])
        with maps.record_attention(model.transformer, [9]) as layers:
            model.transformer(held, labels)
        expected = torch.stack([weights[0, :, 0, :16].mean(0) for weights in layers])
        np.testing.assert_allclose(found.attention[step].reshape(-1, 16), expected.numpy(), rtol=1e-4, atol=1e-6)
        masked, tokens = state.masked, state.tokens
    total = found.attention.sum((2, 3))
    assert (total < 1).all() if label is not None else np.allclose(total, 1, atol=1e-5)  # the rest: the class token


# --- confidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding",
    [
        DecodeConfig(steps=10, softmax_temperature=0.7),  # more than go through the transformer at once
        dataclasses.replace(DECODERS["valeo"], steps=4),
        dataclasses.replace(DECODERS["halton"], steps=5, guidance_scale=1.5),
        DecodeConfig(steps=5, guidance_scale=2.0, guidance_from=0.4, guidance_to=0.8),
        DecodeConfig(steps=4, remask=1.0),
        dataclasses.replace(DECODERS["lab-greedy"], steps=3),
    ],
    ids=["temperature", "guidance ramp", "guidance", "interval", "remask", "greedy"],
)
@torch.no_grad()
def test_confidence_is_the_probability_of_what_was_drawn(decoding: DecodeConfig) -> None:
    model = model_of(KINDS["pre, classes"], precision="float32")
    result = inpainted(model, decoding, label=2)
    confidence = maps.decoding_maps(model, result, decoding, label=2).confidence
    assert confidence.shape == (decoding.steps, 4, 4) and confidence.dtype == np.float32
    masked, tokens = result.masked, result.steps[0].tokens
    for step, state in enumerate(result.steps):
        held = torch.from_numpy(np.where(masked, 32, tokens)).reshape(1, 16)
        with_class, without = (model.transformer(held, torch.tensor([label]))[0].double() for label in (2, 3))
        scale = decoding.guidance_at(step)
        z = ((1 + scale) * with_class - scale * without) / decoding.softmax_temperature
        p = z.exp() / z.exp().sum(-1, keepdim=True)
        decided = masked & ~state.masked
        assert np.array_equal(~np.isnan(confidence[step]), decided)
        expected = p.numpy()[np.arange(16), state.tokens.ravel()].reshape(4, 4)
        np.testing.assert_allclose(confidence[step][decided], expected[decided], rtol=1e-3)
        if decoding.draw == "greedy":
            assert np.allclose(expected[decided], p.amax(-1).numpy().reshape(4, 4)[decided])
        masked, tokens = state.masked, state.tokens
    times = (~np.isnan(confidence)).sum(0)
    assert np.array_equal(times > 0, result.masked) and (decoding.remask or times.max() == 1)


def test_maps_need_steps_and_a_token_on_the_grid() -> None:
    model = model_of(KINDS["pre"])
    result = inpainted(model, DecodeConfig(steps=2))
    assert maps.decoding_maps(model, result, DecodeConfig(steps=2)).query == maps.hole_center(result.masked)
    for query in ((4, 0), (0, -1)):
        with pytest.raises(ValueError, match="isn't on the grid of 4 x 4 tokens"):
            maps.decoding_maps(model, result, DecodeConfig(steps=2), query=query)
    with pytest.raises(ValueError, match="without classes"):
        maps.decoding_maps(model, result, DecodeConfig(steps=2), label=0)
    with pytest.raises(ValueError, match="steps were not kept"):
        maps.decoding_maps(model, dataclasses.replace(result, steps=[]))


def test_hole_center() -> None:
    masked = np.zeros((6, 8), dtype=bool)
    masked[1:4, 2:7] = True
    assert maps.hole_center(masked) == (2, 4)
    ring = np.ones((5, 5), dtype=bool)
    ring[1:4, 1:4] = False  # its middle isn't masked: the nearest token that is
    row, column = maps.hole_center(ring)
    assert ring[row, column] and abs(row - 2) + abs(column - 2) == 2


# --- the picture ------------------------------------------------------------------------------------------------------


def drawn(layers: int, size: tuple[int, int] = (128, 128)) -> tuple[np.ndarray, maps.Maps]:
    """The picture of two steps, each of which decides one token for sure and looks at one only: (0, 3), then (3, 0)."""
    width, height = size
    masked = np.zeros((4, 4), dtype=bool)
    masked[1, 1:3] = True
    first = masked.copy()
    first[1, 1] = False
    white = Image.new("RGB", size, "white")
    steps = [Step(white, left, np.zeros((4, 4), dtype=np.int64)) for left in (first, masked & False)]
    result = InpaintResult(white, white, np.zeros((height, width), dtype=bool), masked, steps)
    confidence = np.full((2, 4, 4), np.nan, dtype=np.float32)
    confidence[0, 1, 1] = confidence[1, 1, 2] = 1.0
    attention = np.zeros((2, layers, 4, 4), dtype=np.float32)
    attention[0, :, 0, 3] = 0.5
    attention[1, :, 3, 0] = 0.25
    found = maps.Maps(confidence, attention, (1, 1))
    return np.asarray(maps.map_picture(result, found)).astype(int), found


def close(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return abs(picture - color).max(-1) <= 1


def test_map_picture() -> None:
    picture, _ = drawn(layers=1)
    pitch = 130 + maps.GAP  # a picture in its frame, and what is left free beside it
    first, second = (slice(maps.GAP + n * pitch, maps.GAP + n * pitch + 130) for n in (1, 2))
    maps_only = picture[: -2 * maps._LINE]
    # A token is 32 x 32 pixels. At each step there is one that is sure, and one that is looked at: top right, full red,
    # and bottom left, half as red.
    white = 110 + 0.57 * 255
    half = tuple(round((white + channel) / 2) for channel in maps.HEAT)
    places = []
    for column, heat in ((first, maps.HEAT), (second, half)):
        assert close(maps_only[:, column], maps.SCALE[-1]).sum() == 32 * 32
        hot = close(maps_only[:, column], heat).nonzero()  # type: ignore[arg-type]
        assert len(hot[0]) == 32 * 32
        places.append((hot[0].min(), hot[1].min()))
        assert close(maps_only[:, column], maps.QUERY).sum() > 100  # the frame
    assert places[1][0] - places[0][0] == 96 == places[0][1] - places[1][1]
    # Two tokens were masked: at step 1 one is still, at step 2 one was decided before.
    assert close(maps_only[:, first], maps.OPEN).sum() == pytest.approx(32 * 32, abs=100)
    assert close(maps_only[:, second], maps.DECIDED).sum() == pytest.approx(32 * 32, abs=100)


def test_map_picture_of_many_layers() -> None:
    heights = {layers: drawn(layers, size=(128, 64))[0].shape[0] for layers in (1, 2, 8, 9, 24)}
    row = (heights[8] - heights[2]) / 6
    assert row > 64 and heights[2] - heights[1] == 2 * row  # the mean of all, then each layer
    assert heights[24] == heights[9] == heights[8]  # never more than 8 rows besides the mean

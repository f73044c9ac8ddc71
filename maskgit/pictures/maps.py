"""Where the model looked and how sure it was: attention and confidence at each step of an inpainting.

results = model.inpaint([image], [mask], save_steps=True)
maps = decoding_maps(model, results[0])
map_picture(results[0], maps).save("maps.png")

The kernels never write down attention weights, and the decoder gives no probabilities. Both are computed again here,
from what the kept steps say the model was given. Confidence is what Chang et al. (CVPR 2022, section 3.2) rank tokens
by; of the weights, softmax(q k^T / sqrt(D)) of Vaswani et al. (2017), the mean over heads is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from maskgit.decoding import DecodeConfig
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import RMS_NORM_EPS, Transformer
from maskgit.pictures.strips import BACKGROUND, GAP, INK, blocks, display_size, framed, grid, resize, text_picture
from maskgit.pipeline import InpaintResult, MaskGIT

_STEPS_AT_ONCE = 8  # go through the transformer together

# The confidence map: from unsure to sure, and what isn't decided at the step.
SCALE = ((70, 20, 110), (50, 90, 160), (30, 150, 130), (120, 200, 70), (250, 225, 40))
GIVEN = (240, 240, 240)
DECIDED = (205, 205, 205)
OPEN = (140, 140, 140)

# The attention map: the image pale, heat over it, and a frame around the token that looks.
HEAT = (215, 25, 30)
QUERY = (0, 110, 255)

_MOST_ROWS = 8  # of attention: a deeper model's layers are put together
_BAR = (120, 10)  # size of a legend's scale
_LINE, _LEGEND_WIDTH = 22, 560  # height of a legend's line, and room for the longest

# --- numbers ----------------------------------------------------------------------------------------------------------


class Maps(NamedTuple):
    """What one inpainting of T steps looked like from inside, on the model's grid of h x w tokens."""

    confidence: np.ndarray
    """float32 [T, h, w]: the probability that the model gave the token, where one was decided at the step; NaN
    elsewhere. It is that of the distribution from which tokens are drawn, with guidance and softmax temperature, and
    without the noise that the decoder may have ranked it with."""
    attention: np.ndarray
    """float32 [T, layers, h, w]: the weights with which the query token attended to the image's tokens, mean over
    heads. They add up to 1 less what went to class token or registers."""
    query: tuple[int, int]
    """Row and column of the query token."""


@torch.inference_mode()
def decoding_maps(
    model: MaskGIT,
    result: InpaintResult,
    config: DecodeConfig | None = None,
    *,
    label: int | str | None = None,
    query: tuple[int, int] | None = None,
) -> Maps:
    """The maps of an inpainting, computed after it.

    With context reuse (`DecodeConfig.reuse`) they are those of full evaluations.

    Args:
        model, config, label: those that made the result; the model's own decoding by default, and no class.
        result: with its steps kept (`save_steps`).
        query: row and column of the token whose attention is wanted; by default `hole_center`.

    Raises:
        ValueError: the result has no steps, the query isn't on the grid, or the model has no such class.
    """
    if not result.steps:
        raise ValueError("the steps were not kept (save_steps), or nothing was masked")
    config = config or model.decoding
    rows, columns = result.masked.shape
    row, column = hole_center(result.masked) if query is None else query
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"query {(row, column)} isn't on the grid of {rows} x {columns} tokens")

    before = np.stack([result.masked, *(step.masked for step in result.steps[:-1])])  # [T, h, w]
    after = np.stack([step.masked for step in result.steps])
    drawn = np.stack([step.tokens for step in result.steps])
    found = np.concatenate([drawn[:1], drawn[:-1]])  # what stood there before the step, where it wasn't masked
    held = torch.from_numpy(np.where(before, model.transformer.config.mask_token_id, found)).flatten(1)  # [T, N]
    scales = torch.tensor([config.guidance_at(step) if label is not None else 0.0 for step in range(len(held))])

    codes = torch.from_numpy(drawn).flatten(1)
    probabilities, attention = [], []
    parts = (whole.to(model.device).split(_STEPS_AT_ONCE) for whole in (held, codes, scales))
    for tokens, chosen, scale in zip(*parts, strict=True):
        with record_attention(model.transformer, [row * columns + column]) as layers:
            logits = _logits(model, tokens, label)
        if scale.any():
            logits = logits + scale[:, None, None] * (logits - _logits(model, tokens, None))
        p = (logits / config.softmax_temperature).softmax(-1)
        probabilities.append(p.gather(-1, chosen[..., None])[..., 0])  # [t, N]
        attention.append(torch.stack([weights.mean(1)[:, 0, : rows * columns] for weights in layers], dim=1))
    confidence = torch.cat(probabilities).cpu().numpy().reshape(before.shape)
    weights = torch.cat(attention).cpu().numpy()  # [T, layers, N]
    return Maps(
        np.where(before & ~after, confidence, np.float32(np.nan)),
        weights.reshape(*weights.shape[:2], rows, columns),
        (row, column),
    )


def hole_center(masked: np.ndarray) -> tuple[int, int]:
    """Row and column of the masked token that is nearest to the middle of them all; bool [h, w], any of them True."""
    places = np.argwhere(masked)
    row, column = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    return int(row), int(column)


@contextlib.contextmanager
def record_attention(transformer: Transformer | HaltonTransformer, queries: Sequence[int]) -> Iterator[list[Tensor]]:
    """Within, each block of a transformer that is called notes how it attends.

    Args:
        transformer: a `Transformer` or `HaltonTransformer`, evaluated in full (without a context).
        queries: Q positions in its sequence of L: the N tokens, then class token or registers.

    Yields:
        A list, to which each block's pass adds softmax(q k^T / sqrt(D)), float32 [B, H, Q, L].
    """
    weights: list[Tensor] = []

    def listen(layer: Any) -> torch.utils.hooks.RemovableHandle:
        return layer.qkv.register_forward_hook(lambda _, __, packed: weights.append(_weights(layer, packed, queries)))

    handles = [listen(block.attention) for block in transformer.blocks]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


def _weights(layer: Any, packed: Tensor, queries: Sequence[int]) -> Tensor:
    """The weights of an attention layer, [B, H, Q, L], from its packed projection [B, L, 3 H D]."""
    with torch.autocast(packed.device.type, enabled=False):
        q, k, _ = packed.chunk(3, dim=-1)
        if layer.qk_norm:
            q, k = (F.rms_norm(part.float(), part.shape[-1:], eps=RMS_NORM_EPS).to(packed.dtype) for part in (q, k))
        q, k = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2).float() for part in (q, k))  # [B, H, L, D]
        return (q[:, :, queries] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def _logits(model: MaskGIT, tokens: Tensor, label: int | str | None) -> Tensor:
    """float32 [t, N, V] of tokens int64 [t, N], all with the same class or none."""
    number = None if label is None else tokens.new_full((len(tokens),), model.class_number(label))
    with torch.autocast(model.device.type, dtype=model.dtype, enabled=model.autocast):
        logits = model.transformer(tokens, number)
    return logits[..., : model.transformer.config.codebook_size].float()


# --- the picture ------------------------------------------------------------------------------------------------------


def map_picture(result: InpaintResult, maps: Maps) -> Image.Image:
    """Confidence and attention, step by step from left to right.

    The first row has the image after each step. The second shows the tokens that were decided at the step, colored by
    confidence, with their number and mean confidence below. Then the attention of one token, which is framed: red where
    it looks, over the image; first the mean of all layers, then each (neighbors together, where there are more than
    8). Within a row, the same red is the same weight. `maps` is what `decoding_maps` gave for the result.
    """
    size = display_size(result.original.size)
    images = [resize(step.image, size) for step in result.steps]
    before = [result.masked, *(step.masked for step in result.steps)]
    pictures: list[Image.Image | None] = [text_picture("image so far"), *images, text_picture("confidence")]
    pictures += [
        _confidence_picture(confidence, result.masked, still, size)
        for confidence, still in zip(maps.confidence, before, strict=False)
    ]
    layers = maps.attention.shape[1]
    groups = [(0, layers)]
    if layers > 1:
        edges = np.linspace(0, layers, min(layers, _MOST_ROWS) + 1).round().astype(int).tolist()
        groups += list(zip(edges, edges[1:], strict=False))
    for first, last in groups:
        weights = maps.attention[:, first:last].mean(1)  # [T, h, w]
        name = f"mean of layers {first + 1}-{last}" if last - first > 1 else f"layer {last}"
        lines = ["attention", name, f"full red: {_percent(weights.max())}"]
        outside = 1 - weights.sum((1, 2)).mean()
        if outside >= 0.005:
            lines.append(f"off the image: {_percent(outside)}")
        pictures.append(text_picture("\n".join(lines)))
        pictures += [
            _attention_picture(image, shares / weights.max(), maps.query)
            for image, shares in zip(images, weights, strict=True)
        ]
    columns = 1 + len(images)
    top = grid(pictures, columns, ["", *(f"step {number}" for number in range(1, columns))])
    bottom = _legend()
    canvas = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), BACKGROUND)
    canvas.paste(top, (0, 0))
    canvas.paste(bottom, (0, top.height))
    return canvas


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def _confidence_colors(confidence: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> uint8 [..., 3]."""
    places = np.linspace(0, 1, len(SCALE))
    channels = [np.interp(confidence, places, channel) for channel in zip(*SCALE, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _confidence_picture(
    confidence: np.ndarray, start: np.ndarray, before: np.ndarray, size: tuple[int, int]
) -> Image.Image:
    """float [h, w], NaN where nothing was decided at the step; bool [h, w], what was masked at first and before it."""
    fresh = ~np.isnan(confidence)
    rest = np.array([GIVEN, DECIDED, OPEN], dtype=np.uint8)[start.astype(int) + before]
    cells = np.where(fresh[..., None], _confidence_colors(np.nan_to_num(confidence)), rest)
    count = int(fresh.sum())
    return framed(blocks(cells, size), f"{count} decided: {np.nanmean(confidence):.2f}" if count else "none decided")


def _attention_picture(image: Image.Image, shares: np.ndarray, query: tuple[int, int]) -> Image.Image:
    """RGB; float [h, w] in [0, 1]; row and column."""
    pale = 110 + 0.57 * np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    weight = np.asarray(blocks(shares.astype(np.float32), image.size))[..., None]
    picture = Image.fromarray((pale + weight * (np.array(HEAT) - pale)).round().astype(np.uint8))
    (row, column), (rows, columns) = query, shares.shape
    left, top = column * image.width // columns, row * image.height // rows
    right, bottom = (column + 1) * image.width // columns, (row + 1) * image.height // rows
    ImageDraw.Draw(picture).rectangle((left - 1, top - 1, right, bottom), outline=QUERY, width=2)
    return picture


def _legend() -> Image.Image:
    """What the colors mean, in a line for each kind of map."""
    scale = np.linspace(0, 1, _BAR[0])
    heat = 200 + scale[:, None] * (np.array(HEAT) - 200)
    confident, hot = (_bar(colors) for colors in (_confidence_colors(scale), heat.round().astype(np.uint8)))
    given, decided, still = (_bar(np.full((_BAR[1], 3), color, dtype=np.uint8)) for color in (GIVEN, DECIDED, OPEN))
    frame = _bar(np.full((_BAR[1], 3), BACKGROUND, dtype=np.uint8), QUERY)
    lines: list[list[str | Image.Image]] = [
        ["confidence 0", confident, "1", given, "given", decided, "decided before", still, "still masked"],
        ["attention 0", hot, "the row's largest", frame, "the token that looks"],
    ]
    canvas = Image.new("RGB", (_LEGEND_WIDTH, len(lines) * _LINE), BACKGROUND)
    for number, line in enumerate(lines):
        left = GAP
        for part in line:
            picture = text_picture(part) if isinstance(part, str) else part
            canvas.paste(picture, (left, number * _LINE + (_LINE - picture.height) // 2))
            left += picture.width + GAP
    return canvas


def _bar(colors: np.ndarray, outline: tuple[int, int, int] = INK) -> Image.Image:
    """uint8 [width, 3] from left to right, in a thin frame."""
    picture = Image.fromarray(np.tile(colors, (_BAR[1], 1, 1)))
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=outline)
    return picture

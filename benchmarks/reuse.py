"""Context reuse (`--reuse`): what it saves, and what it costs.

    python -m benchmarks.reuse                                     # the embedded model on its sample images
    python -m benchmarks.reuse --images photos --steps 12 --seeds 5

For a hole of a quarter of the picture and for the whole picture, the decoding loop runs with each `reuse`, and with
fewer steps instead, which saves time as well. Printed for each:

    time       milliseconds an image takes in the loop (encoding and decoding pixels not included), and the speed-up
               over the plain loop, medians over rounds in which all take turns
    agreement  share of the filled tokens that are those of the plain loop; the seeds are the same
    original   share that are those of the original picture
    surprise   -log p of the filled tokens in nats, by the model itself: each token given all known ones and a random
               half of the filled ones. Low where tokens go together.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.models import predictor
from maskgit import MaskGIT
from maskgit.data.images import find_images
from maskgit.data.reading import read_image
from maskgit.decoding import DecodeConfig
from maskgit.pipeline import image_seed
from maskgit.pipeline.pixels import to_tensor


@dataclass(frozen=True)
class Options:
    """What to measure."""

    images: Path | None = None
    """A folder of pictures; by default the samples."""
    most: int = 16
    """Pictures to take from it, all in one batch."""
    model: str = "embedded"
    """As for inpaint.py."""
    device: str | None = None
    """As for inpaint.py."""
    steps: int = 8
    """Of the plain loop."""
    reuse: tuple[int, ...] = (1, 2, 3)
    """Values to try."""
    fewer_steps: tuple[int, ...] = (6, 4)
    """Numbers of steps to compare with."""
    seeds: int = 3
    """Runs with seeds of their own; each is a round of the timing."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.reuse", description=__doc__)
    model = MaskGIT.from_pretrained(options.model, device=options.device)
    tokens = encode(model, options)
    grid = model.tokenizer.config.grid
    center = torch.zeros(grid, grid, dtype=torch.bool)
    center[grid // 4 : grid - grid // 4, grid // 4 : grid - grid // 4] = True
    print(f"{len(tokens)} pictures, {options.seeds} seeds, {options.steps} steps, on {model.device}")
    for name, hole in (("a quarter of the picture", center), ("all of it", torch.ones_like(center))):
        print(f"\n{name}\n{'':<12}{'ms/image':>10}{'speed-up':>10}{'agreement':>11}{'original':>10}{'surprise':>10}")
        masked = hole.flatten().expand_as(tokens).to(tokens.device)
        for row in rows(model, tokens, masked, options):
            print(row, flush=True)


def encode(model: MaskGIT, options: Options) -> Tensor:
    """The pictures as tokens, int64 [B, N]."""
    with resources.as_file(resources.files("maskgit") / "assets" / "samples") as samples:
        found = find_images(options.images or samples)[: options.most]
        if not found:
            raise SystemExit(f"error: {options.images}: no images in this folder")
        size = (model.tokenizer.config.image_size,) * 2
        pictures = [to_tensor(read_image(path).resize(size)) for path in found]
    return model._encode(torch.stack(pictures).to(model.device))


def rows(model: MaskGIT, tokens: Tensor, masked: Tensor, options: Options) -> Iterator[str]:
    """A line for each configuration, the plain loop first."""
    plain = dataclasses.replace(model.decoding, steps=options.steps, reuse=0)
    configs = {f"{options.steps} steps": plain}
    configs |= {f"reuse {reuse}": dataclasses.replace(plain, reuse=reuse) for reuse in options.reuse}
    configs |= {f"{steps} steps": dataclasses.replace(plain, steps=steps) for steps in options.fewer_steps}
    for config in configs.values():  # compilation and CUDA graphs, not timed
        decode(model, tokens, masked, config, 0)
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    made: dict[str, list[Tensor]] = {name: [] for name in configs}  # int64 [B, N] each
    for seed in range(options.seeds):
        for name, config in configs.items():
            start = time.perf_counter()
            made[name].append(decode(model, tokens, masked, config, seed))
            seconds[name].append(time.perf_counter() - start)

    first = next(iter(configs))
    for name in configs:
        speedup = statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        same = [share(x, y, masked) for x, y in zip(made[name], made[first], strict=True)]
        right = [share(x, tokens, masked) for x in made[name]]
        nats = [surprise(model, x, masked, seed) for seed, x in enumerate(made[name])]
        milliseconds = statistics.median(seconds[name]) / len(tokens) * 1000
        yield (
            f"{name:<12}{milliseconds:>10.2f}{speedup:>10.2f}{np.mean(same):>11.3f}{np.mean(right):>10.3f}"
            f"{np.mean(nats):>10.3f}"
        )


def decode(model: MaskGIT, tokens: Tensor, masked: Tensor, config: DecodeConfig, seed: int) -> Tensor:
    """The pipeline's loop: tokens int64 [B, N], when the device is done."""
    seeds = [image_seed(seed, i) for i in range(len(tokens))]
    *_, (result, _) = model._decode(tokens, masked, config, seeds, None, len(tokens))
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return result


def share(a: Tensor, b: Tensor, masked: Tensor) -> float:
    """How many of the masked tokens are equal."""
    return (a == b)[masked].double().mean().item()


def surprise(model: MaskGIT, tokens: Tensor, masked: Tensor, seed: int) -> float:
    """Mean -log p of the tokens that were filled: see the module's docstring."""
    generator = torch.Generator().manual_seed(seed)  # the same halves for all configurations
    half = masked & (torch.rand(masked.shape, generator=generator) < 0.5).to(masked.device)
    predict, total = predictor(model), 0.0
    for hidden in (half, masked & ~half):
        logits = predict(tokens.masked_fill(hidden, model.transformer.config.mask_token_id)).float()
        total -= logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0][hidden].sum().item()
    return total / int(masked.sum())


if __name__ == "__main__":
    main()

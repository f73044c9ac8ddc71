"""What the day stands on: a decoding loop as a CUDA graph, a picture inpainted with either kernels, images in batches.

python -m benchmarks.gpu.smoke FILE.json [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.files import write
from benchmarks.harness import WrongResultError
from benchmarks.models import decode_tokens, make_models
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.decoding import DecodeConfig
from maskgit.decoding.graphs import Batch, DecodeGraph
from maskgit_kernels import backend

STEPS = 8
SAMPLE = "lorelei-333.png"
BATCHES = (16, 4, 1)  # the first is all pictures
# Share of the inpainted tokens that may differ between our kernels and PyTorch, both in float32: a draw that is decided
# by rounding changes what comes after it.
DIFFERENT = 0.1


def main() -> int:
    """Run the checks, one after the other; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.smoke", description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true", help="the same; every step has this option")
    options = parser.parse_args()
    setting = Setting(torch.device("cuda" if torch.cuda.is_available() else "cpu"), options.quick)
    results: list[dict[str, Any]] = []
    checks: dict[str, Callable[[Setting], str]] = {
        "graph": check_graph,
        "inpainting": check_inpainting,
        "batches": compare_batches,
    }
    for name, check in checks.items():
        try:
            status, finding = "passed", check(setting)
        except Exception as error:  # whatever goes wrong on new hardware is a finding
            status, finding = "failed", f"{type(error).__name__}: {error}"
        results.append({"check": name, "status": status, "finding": finding})
        print(f"{name}: {status}: {finding}", flush=True)
        write(options.result, {"checks": results})
    return int(any(result["status"] == "failed" for result in results))


def check_graph(setting: Setting) -> str:
    """The replayed graph gives what the loop gives launch by launch, on images that it was not captured with."""
    if not setting.on_gpu:
        return "no graph without a GPU"
    model = MaskGIT.from_pretrained(device=setting.device)
    loop = model._loop(dataclasses.replace(model.decoding, steps=STEPS))
    graph = DecodeGraph(loop, _batch(model, seed=0))
    batch = _batch(model, seed=1)
    tokens, masked = graph(batch)
    with torch.inference_mode():
        expected_tokens, expected_masked = (torch.stack(states) for states in zip(*loop(batch), strict=True))
    different = int((masked != expected_masked).sum() + ((tokens != expected_tokens) & ~masked).sum())
    if different:
        raise WrongResultError(f"{different} of {tokens.numel()} tokens differ from the loop's")
    if bool(masked[-1].any()):
        raise WrongResultError("some tokens are still masked at the end")
    return f"{STEPS} steps of {len(batch.tokens)} images captured; the loop's own tokens"


def _batch(model: MaskGIT, seed: int, count: int = 4) -> Batch:
    """Nothing but masks: what `generate` starts with."""
    masked = torch.ones(count, model.transformer.config.num_tokens, dtype=torch.bool, device=model.device)
    seeds = torch.arange(count, device=model.device) + count * seed
    return Batch(torch.zeros_like(masked, dtype=torch.int64), masked, seeds, None)


def check_inpainting(setting: Setting) -> str:
    """One of the bundled samples, in float32, by each implementation: the same tokens but for rounding."""
    model = MaskGIT.from_pretrained(device=setting.device, precision="float32")
    found = {kernels: _inpaint(model, kernels) for kernels in setting.backends()}
    if len(found) == 1:
        return f"filled with {next(iter(found))}; there is nothing to compare it with"
    (_, masked), _ = found.values()
    different = int((found["torch"][0] != found["triton"][0])[masked].sum())
    if different > DIFFERENT * masked.sum():
        raise WrongResultError(f"{different} of {masked.sum()} tokens differ between triton and torch")
    return f"{different} of {masked.sum()} tokens differ between triton and torch in float32"


def _inpaint(model: MaskGIT, kernels: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int64 [h, w] of the filled picture, and which of them were drawn."""
    path = resources.files("maskgit") / "assets" / "samples" / SAMPLE
    with path.open("rb") as file, Image.open(file) as opened:
        image = opened.convert("RGB")
    hole = np.zeros(image.size[::-1], dtype=bool)
    height, width = hole.shape
    hole[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    backend.use(kernels)
    try:
        (result,) = model.inpaint([image], [hole], seed=3, steps=STEPS, save_steps=True)
    finally:
        backend.use("auto")
    if not np.array_equal(np.asarray(result.image)[0], np.asarray(image)[0]):
        raise WrongResultError(f"{kernels}: known pixels were changed")
    if np.array_equal(np.asarray(result.image)[hole], np.asarray(image)[hole]):
        raise WrongResultError(f"{kernels}: nothing was filled")
    return result.steps[-1].tokens, result.masked


def compare_batches(setting: Setting) -> str:
    """How many pictures' tokens differ when they are made in batches of another size.

    Our kernels don't let an image's neighbours have a say; the libraries' matrix products may choose another kernel,
    which rounds differently, for another batch. So a difference is a finding, not a failure.
    """
    found, config = [], DecodeConfig(steps=STEPS)
    for precision, model in make_models("embedded", setting.device, setting.quick).items():
        made = {}
        for batch in BATCHES:
            parts = [decode_tokens(model, config, batch, None, first=i) for i in range(0, BATCHES[0], batch)]
            made[batch] = torch.cat(parts)  # [BATCHES[0], N]
        for batch in BATCHES[1:]:
            different = int((made[batch] != made[BATCHES[0]]).any(1).sum())
            found.append(f"{precision}: {different} of {BATCHES[0]} pictures differ in batches of {batch}")
    return "; ".join(found)


if __name__ == "__main__":
    sys.exit(main())

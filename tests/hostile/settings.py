"""`train.py --config`: a run's run.json with hostile settings. Always with --dry-run, so that nothing is trained."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgit.config import PRESETS
from maskgit.training.run_file import describe_run
from maskgit.training.settings import TokenizerTraining, TransformerTraining

from .bending import NESTED, as_json, bend_json, put_odd
from .cases import Case, Content, Group, Known, command, with_file
from .seeds import Seeds

FILE = Path("run.json")
COMMON = {"steps": 4, "batch_size": 4, "device": "cpu", "model": "tiny", "data": "pictures", "precision": "float32"}
SLOW = ("workers", "compile", "perceptual", "validation_images", "eval_every", "wandb")
"""Settings whose sound values start processes, compile or download."""


def run_json(stage: str, **changes: Any) -> dict[str, Any]:
    """A run.json as training writes it, of the tiny presets, with changed settings."""
    common = COMMON | {"output": Path("run")}
    if stage == "tokenizer":
        content = describe_run(TokenizerTraining(**common))
    else:
        content = describe_run(TransformerTraining(**common, tokenizer=Path("model"), ema=0.9))
    content["settings"] |= changes
    return content


def use(seeds: Seeds, *words: str) -> Case:
    PRESETS.clear()  # the others would be measured for minutes
    for name in ("model", "pictures", "tokens"):
        seeds.take(name)
    return command(seeds.tiny_train.run, [*words, "--config", str(FILE), "--dry-run"])


def settings_file(content: Content, *words: str) -> Callable[[Seeds], Case]:
    return with_file(lambda seeds: use(seeds, *words), os.fspath(FILE), content)


def changed(stage: str = "tokenizer", **changes: Any) -> Callable[[Seeds], Case]:
    return settings_file(lambda _: as_json(run_json(stage, **changes)))


def option(*words: str) -> Callable[[Seeds], Case]:
    return settings_file(lambda _: as_json(run_json("tokenizer")), "tokenizer", *words)


KNOWN: Known = {
    "F10 pipe": settings_file(None),
    "F12 lr 10^400": changed(lr=10**400),
    "F12 ema 10^400": changed("transformer", ema=10**400),
    "F12 nested": settings_file(NESTED),
    "F12 nested settings": settings_file(
        b'{"stage": "tokenizer", "settings": ' + b'{"augment":' * 100_000 + b"1" + b"}" * 100_001
    ),
    "F12 10^30 steps": changed(steps=10**30),
    "F12 batch of 10^400": changed(batch_size=10**400),
    "F12 batch of 10^400, transformer": changed("transformer", batch_size=10**400),
    "batch of 10^30": changed(batch_size=10**30),
    "F12 10^30 steps, transformer": changed("transformer", steps=10**30),
    "device privateuseone": changed(device="privateuseone"),
    "number of 5000 digits": settings_file(
        lambda _: as_json(run_json("tokenizer")).replace(b'"steps": 4', b'"steps": 4' + b"0" * 5000)
    ),
    "F9 10^9 names of archives": changed(data="{000000000..999999999}.tar"),
    "option of 5000 digits": option("--steps", "9" * 5000),
    "option of 400 digits": option("--lr", "9" * 400),
    "seed 10^30": changed(seed=10**30),
    "image_size 10^9": changed("transformer", image_size=10**9),
    "10^12 views": changed("transformer", views=10**12),
    "accumulate 10^30": changed(accumulate=10**30, batch_size=10**30),
    "both": option("--recipe", "valeo"),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    stage = rng.choice(("tokenizer", "transformer"))
    content = run_json(stage)
    if stage == "transformer" and rng.random() < 0.4:
        content["settings"]["tokens"] = "tokens"
    kept = {name: content["settings"].pop(name) for name in SLOW if name in content["settings"]}
    if rng.random() < 0.8:
        bent = bend_json(rng, content["settings"])
        whole = as_json({**content, "settings": "PART"})
        FILE.write_bytes(whole.replace(b'"PART"', bent))
    else:
        FILE.write_bytes(bend_json(rng, {**content, "settings": content["settings"] | kept}))
    if rng.random() < 0.03:
        put_odd(rng, FILE)
    return use(seeds, *rng.choice(((), (), (), (stage,), ("tokens",))))


GROUP = Group("train.py --config", KNOWN, random_case)

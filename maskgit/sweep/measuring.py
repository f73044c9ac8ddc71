"""Measures the cells of a sweep, one setting with one seed each."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from maskgit.console import progress_bar
from maskgit.machine import describe
from maskgit.metrics.features import FeatureNetwork
from maskgit.metrics.figures import spread, weights_digest
from maskgit.pipeline import MaskGIT
from maskgit.sweep.ledger import Ledger
from maskgit.sweep.making import FIGURES, REAL, REFERENCES, Judge, load_images, make
from maskgit.sweep.settings import AXES, FEATURES_WORK, Options, Setting, describe_values, settings
from maskgit_kernels import backend


def sweep(model: MaskGIT, networks: Sequence[FeatureNetwork], options: Options, command: str = "") -> dict[str, Any]:
    """Measure what is not in the ledger yet, and put all of it into a report, as JSON can hold it.

    Of the options, `model`, `device` and `precision` are not looked at again; `command` is noted in the report.

    Raises:
        DataError, ImageError: images that can't be used.
        ValueError, OSError: the ledger can't be read or written.
    """
    chosen, seeds = settings(options, model.decoding), range(options.seed, options.seed + options.seeds)
    images, machine = load_images(model, options), describe(model.device)
    references = REAL if options.generate else REFERENCES
    ledger, judge = Ledger(options.output / "cells.jsonl"), Judge(networks, images)
    digest, images_digest = weights_digest(model), images.digest
    context = {
        "weights": digest,
        "images": images_digest,
        "networks": {network.name: network.digest for network in networks},
        "precision": model.precision,
        "kernels": backend.resolve(None, model.device),
        "batch_size": options.batch_size,
        **{name: machine[name] for name in ("device", "threads", "torch")},
    }

    def key(**what: Any) -> dict[str, Any]:
        return {**context, **what}

    def cell(setting: Setting, seed: int) -> dict[str, Any]:
        return key(config=dataclasses.asdict(setting.acting), seed=seed)

    def reference_key(method: str) -> dict[str, Any]:
        # Which training pictures are drawn isn't in the digest of the images.
        return key(method=method, seed=options.seed) if options.generate else key(method=method)

    def measure(what: dict[str, Any], fill: Callable[[], list[Image.Image]]) -> None:
        start = time.perf_counter()
        made = fill()
        milliseconds = 1000 * (time.perf_counter() - start) / len(made)
        ledger.add(what, {**judge.figures(made), "milliseconds": milliseconds})

    for method, reference in references.items():
        if reference_key(method) not in ledger:
            measure(reference_key(method), functools.partial(reference, model, images, options))

    # All settings once, then all with the next seed: if the machine becomes slower meanwhile, it does so for all.
    cells = [(setting, seed) for seed in seeds for setting in chosen]
    absent = [(setting, seed) for setting, seed in cells if cell(setting, seed) not in ledger]
    missing = {(setting.acting, seed): (setting, seed) for setting, seed in absent}.values()  # two names, one config
    print(
        f"{len(chosen)} settings x {len(seeds)} seeds on {len(images.numbers)} images; "
        f"{len(cells) - len(absent)} of {len(cells)} cells are finished already"
    )
    varied = [field for field in AXES if len({setting.values[field] for setting in chosen}) > 1]
    warm: set[Setting] = set()
    with progress_bar(sum(setting.work for setting, _ in missing) * len(images.numbers), "", unit=None) as bar:
        for setting, seed in missing:
            bar.set_description_str(f"{describe_values(setting.values, varied)} seed {seed}".strip())
            fill = functools.partial(make, model, images, setting, seed, options.batch_size)
            if setting not in warm:  # the first batch prepares what the others use: packed weights, CUDA graphs
                fill(most=options.batch_size)
                warm.add(setting)
            work = setting.work - FEATURES_WORK
            measure(cell(setting, seed), functools.partial(fill, progress=lambda done, w=work: bar.update(w * done)))
            bar.update(FEATURES_WORK * len(images.numbers))

    def summary(keys: list[dict[str, Any]]) -> dict[str, Any]:
        found = [ledger[one] for one in keys]
        return {name: spread([figures[name] for figures in found]) for name in FIGURES if name in found[0]}

    return {
        "study": options.name,
        "command": command,
        "machine": machine,
        "model": options.model,
        "weights_sha256": digest,
        "precision": model.precision,
        "data": options.data,
        "images": len(images.numbers),
        "images_sha256": images_digest,
        "hole": None if options.generate else options.hole,
        "classes": options.tells_classes,
        "seeds": list(seeds),
        "axes": [field for field, values in options.axes.items() if len(set(values)) > 1],
        "varied": varied,
        "rows": [
            {
                "setting": setting.values,
                "config": dataclasses.asdict(setting.config),
                "passes": setting.config.passes,
                "figures": summary([cell(setting, seed) for seed in seeds]),
            }
            for setting in chosen
        ],
        "references": [{"method": method, "figures": summary([reference_key(method)])} for method in references],
    }

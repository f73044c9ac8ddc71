"""What the decoding options do to quality and time: inpaint held-out images with every combination of them.

    python -m maskgit.sweep --study steps                       # distance and time against the number of steps
    python -m maskgit.sweep --study schedules --steps 8 16      # a study with an axis of one's own
    python -m maskgit.sweep --decoders maskgit halton --temperatures 0 4.5 --steps 4 8 16

Writes results.json, results.md and plots to OUTPUT/STUDY. A cell, one setting with one seed, is kept in
OUTPUT/cells.jsonl as soon as it is finished: a run that is broken off goes on where it was, and studies share what
they have in common. Needs the extras [metrics] and, for the plots, [bench]. See docs/sweeps.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from maskgit.console import printable_message
from maskgit.files import write_atomically
from maskgit.metrics.features import EfficientNetFeatures, FeatureNetwork, WeightsError, inception
from maskgit.metrics.figures import json_bytes, run_measuring
from maskgit.metrics.held_out import import_opencv
from maskgit.pipeline import MaskGIT
from maskgit.sweep.measuring import sweep
from maskgit.sweep.report import draw, markdown
from maskgit.sweep.settings import Options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: the process's) and return its exit status."""
    interrupted = "interrupted: what is finished is kept; the same command goes on from there"
    return run_measuring(Options, measure, argv, "python -m maskgit.sweep", interrupted)


def measure(options: Options, command: str) -> None:
    """Measure what the options ask for, and write the results."""
    options.check()
    import_opencv()
    model = MaskGIT.from_pretrained(options.model, device=options.device, precision=options.precision)
    report = sweep(model, networks(options, model.device), options, command)
    folder, text = options.output / options.name, markdown(report)
    write_atomically({folder / "results.json": json_bytes(report), folder / "results.md": text.encode()})
    print(text)
    try:
        draw(report, folder)
    except ImportError:
        print("no plots: matplotlib is missing: pip install 'maskgit-inpaint[bench]', then run this again")
    print(f"results are in {folder.resolve()}")


def networks(options: Options, device: torch.device) -> list[FeatureNetwork]:
    """Those whose features are compared: EfficientNet-Lite0, and Inception where its weights are.

    Raises:
        ImportError: a package is missing; the message names the extra to install.
        WeightsError: weights that were named can't be used.
    """
    found: list[FeatureNetwork] = [EfficientNetFeatures()]
    try:
        found.append(inception(options.inception_weights))
    except WeightsError as error:
        if options.inception_weights:
            raise
        print(printable_message(f"no FID, only the distance that works offline: {error}"), file=sys.stderr)
    return [network.to(device, memory_format=torch.channels_last) for network in found]  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())

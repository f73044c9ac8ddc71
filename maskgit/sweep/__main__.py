"""What the decoding options do to quality and time: inpaint held-out images with every combination of them.

    python -m maskgit.sweep --study steps                       # distance and time against the number of steps
    python -m maskgit.sweep --study schedules --steps 8 16      # a study with an axis of one's own
    python -m maskgit.sweep --decoders maskgit halton --temperatures 0 4.5 --steps 4 8 16
    python -m maskgit.sweep --study guidance --generate         # whole pictures by class

Writes results.json, results.md and plots to OUTPUT/STUDY. A cell, one setting with one seed, is kept in
OUTPUT/cells.jsonl as soon as it is finished: a run that is broken off goes on where it was, and studies share what
they have in common. Needs the extras [metrics] and, for the plots, [bench]. See docs/sweeps.md.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maskgit.console import markdown_table, printable, printable_message
from maskgit.files import write_atomically
from maskgit.metrics.features import EfficientNetFeatures, FeatureNetwork, WeightsError, inception
from maskgit.metrics.figures import json_bytes, number, run_measuring
from maskgit.metrics.held_out import import_opencv
from maskgit.pipeline import MaskGIT
from maskgit.sweep.making import FIGURES
from maskgit.sweep.measuring import sweep
from maskgit.sweep.settings import AXES, Options, describe_values

PAGE = """\
# Sweep: {study}

{images} {what} of {data}{hole_or_not}; classes {told}. {fixed}.

{machine[date]}, {machine[device]}, {machine[threads]} threads, torch {machine[torch]}, revision {machine[revision]}, \
transformer in {precision}. Model {model}, weights {weights_sha256:.12}.

    {command}

{table}
{reference_table}
± is the standard deviation over {decodings} decodings. Fréchet: distance between originals and what was made, in the \
pooled features of EfficientNet-Lite0 (ImageNet weights). It is **not FID**, and all distances depend on the number of \
images: compare them within this page only. {explained} Times are of everything from picture to picture.
"""
OF_HOLES = """\
PSNR is of the mean squared error inside the hole. "Tokenizer only" pastes the decoded tokens of the original: about \
the best that any transformer over these tokens could do."""
OF_PICTURES = """\
Precision and recall by the third nearest neighbor, and the class-entropy score (the formula of the Inception score), \
are in the same network. A picture has the class of one of the held-out images. Real training pictures, as many and \
drawn at random, show how near two sets of real ones are."""


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
    print(f"results are in {printable(folder.resolve())}")


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
    return [network.to(device).to(memory_format=torch.channels_last) for network in found]


# --- the report as Markdown, and drawings of it -----------------------------------------------------------------------


def measured(report: dict[str, Any]) -> list[str]:
    """The keys of FIGURES that the report has."""
    return [name for name in FIGURES if name in report["rows"][0]["figures"]]


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows, varied = report["rows"], report["varied"] or ["decoder"]
    fixed = [field for field in AXES if field not in varied]
    names = measured(report)
    qualities = [name for name in names if name != "milliseconds"]
    head = [field.replace("_", " ") for field in varied]
    guided = any(row["passes"] != row["setting"]["steps"] for row in rows)
    cells = [
        [
            *(str(row["setting"][field]) for field in varied),
            *([str(row["passes"])] if guided else []),
            *(number(row["figures"][name]) for name in names),
        ]
        for row in rows
    ]
    references = [
        [row["method"], *(number(row["figures"][name]) for name in qualities)] for row in report["references"]
    ]
    return PAGE.format(
        **report,
        what="held-out images" if report["hole"] else "pictures made from nothing, against as many held-out ones",
        hole_or_not=f"; hole: {report['hole']}" if report["hole"] else "",
        explained=OF_HOLES if report["hole"] else OF_PICTURES,
        told="told" if report["classes"] else "not told",
        fixed=describe_values(rows[0]["setting"], fixed),
        table="\n".join(
            markdown_table([*head, *(["passes"] if guided else []), *(FIGURES[name] for name in names)], cells)
        ),
        reference_table="\n".join(
            markdown_table(["for comparison", *(FIGURES[name] for name in qualities)], references)
        ),
        decodings=len(report["seeds"]),
    )


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """For each axis with several values, AXIS.png: every figure against it; returns the paths.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: a file can't be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    from matplotlib import pyplot

    drawings = {}
    for field in report["axes"]:
        figure, picture = draw_axis(pyplot, report, field), io.BytesIO()
        figure.savefig(picture, dpi=120, format="png")
        pyplot.close(figure)
        drawings[folder / f"{field}.png"] = picture.getvalue()
    write_atomically(drawings)
    return list(drawings)


def draw_axis(pyplot: Any, report: dict[str, Any], field: str) -> Any:
    """A panel for each figure, with a line for each combination of the other axes; returns matplotlib's figure."""
    values = list(dict.fromkeys(row["setting"][field] for row in report["rows"]))
    numeric = not isinstance(values[0], str)
    if numeric:
        values.sort()
    others = [other for other in report["axes"] if other != field]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(report["rows"], key=lambda row: values.index(row["setting"][field])):
        lines.setdefault(describe_values(row["setting"], others) or "MaskGIT", []).append(row)

    names = measured(report)
    figure, panels = pyplot.subplots(1, len(names), figsize=(4.5 * len(names), 4), layout="constrained")
    for name, panel in zip(names, panels, strict=True):
        for at, (label, line) in enumerate(lines.items()):
            places = [row["setting"][field] for row in line]
            if not numeric:  # names stand beside each other, as points over one name would hide each other
                shift = 0.6 * ((at + 0.5) / len(lines) - 0.5)
                places = [values.index(place) + shift for place in places]
            means = [row["figures"][name]["mean"] for row in line]
            deviations = [row["figures"][name].get("std", 0.0) for row in line]
            joined = "-" if numeric else "none"
            panel.errorbar(places, means, deviations, marker="o", markersize=4, capsize=3, ls=joined, label=label)
        if name != "milliseconds":
            for color, reference in zip(("gray", "black"), report["references"], strict=False):
                level = reference["figures"][name]["mean"]
                panel.axhline(level, color=color, linestyle="--", linewidth=1, label=reference["method"])
        if not numeric:
            panel.set_xticks(range(len(values)), values, rotation=30, ha="right")
        panel.set(xlabel=field.replace("_", " "), ylabel=FIGURES[name])
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    figure.suptitle(
        "{model}, {images} images, {what}, {n} seeds\n{machine[device]}, {machine[date]:.10}".format(
            **report, n=len(report["seeds"]), what=f"hole: {report['hole']}" if report["hole"] else "made from nothing"
        ),
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    sys.exit(main())

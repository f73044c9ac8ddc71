"""Results as pictures: a bar chart of each suite's speed-ups, and one of the promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import Promise, Report, Row, duration

BAR_HEIGHT = 0.22  # inches


def draw(report: Report, folder: Path) -> list[Path]:
    """Write SUITE.png for each suite, and promises.png; returns their paths.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    from matplotlib import pyplot

    written = []
    for suite in dict.fromkeys(row.suite for row in report.rows):
        rows = [row for row in report.rows if row.suite == suite and row.status == "timed"]
        if rows:
            written.append(_save(pyplot, _speedups(pyplot, suite, rows, report), folder / f"{suite}.png"))
    if report.promises:
        written.append(_save(pyplot, _promises(pyplot, report.promises, report), folder / "promises.png"))
    return written


def _speedups(pyplot: Any, suite: str, rows: list[Row], report: Report) -> Any:
    """Bars of speed-up, grouped by comparison, an implementation's always in the same color."""
    comparisons = list(dict.fromkeys(row.comparison for row in rows))
    names = list(dict.fromkeys(row.implementation for row in rows))
    lines = len(rows) + 2 * len(comparisons)
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + BAR_HEIGHT * lines), layout="constrained")
    place, ticks = 0.0, []
    for comparison in comparisons:
        axes.text(0.0, place, f" {comparison}", fontweight="bold", fontsize=8, va="center")
        for row in (row for row in rows if row.comparison == comparison):
            place += 1
            ticks.append((place, row.implementation))
            axes.barh(place, row.speedup, color=f"C{names.index(row.implementation) % 10}", height=0.8)
            axes.text(row.speedup, place, f" {row.speedup:.2f}  ({duration(row.p50)})", fontsize=7, va="center")
        place += 2
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.25 * max(row.speedup for row in rows))
    axes.set_ylim(place - 1, -1)
    axes.set_xlabel("times as fast as the first")
    axes.set_title(_title(suite, report), fontsize=9)
    return figure


def _promises(pyplot: Any, promises: list[Promise], report: Report) -> Any:
    """Measured against promised, 1 being just kept."""
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 1.4 * BAR_HEIGHT * len(promises)), layout="constrained")
    for place, promise in enumerate(promises):
        measured = promise.measured or 0.0
        axes.barh(place, measured / promise.at_least, color="C2" if promise.holds else "C3", height=0.7)
        label = f" {measured:.2f}, promised {promise.at_least:g}" if promise.measured else " not measured"
        axes.text(measured / promise.at_least, place, label, fontsize=7, va="center")
    axes.set_yticks(range(len(promises)), [promise.name for promise in promises], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.4 * max(1.0, *((promise.measured or 0) / promise.at_least for promise in promises)))
    axes.invert_yaxis()
    axes.set_xlabel("measured / promised")
    axes.set_title(_title("promises", report), fontsize=9)
    return figure


def _title(what: str, report: Report) -> str:
    key = report.key
    quick = ", QUICK RUN: MEANS NOTHING" if report.quick else ""
    return (
        f"{what}: {key['device']}, {key['threads']} CPU threads, torch {key['torch']}, {str(key['date'])[:10]}{quick}"
    )


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path

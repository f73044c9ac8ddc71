"""Tables and plots of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_sweep import arguments

from maskgit.sweep.__main__ import draw, draw_axis, main, markdown
from maskgit.sweep.making import FIGURES, REFERENCES
from maskgit.sweep.settings import CUSTOM

pytest.importorskip("cv2", reason="OpenCV is not installed")

# --- tables and plots -------------------------------------------------------------------------------------------------


def made_up(axes: dict[str, list[Any]]) -> dict[str, Any]:
    """A report with random figures for the product of two axes."""
    rng = np.random.default_rng()
    fixed = {"decoder": "maskgit", "steps": 8, "schedule": "cosine"}
    (first, firsts), (second, seconds) = axes.items()

    def figures() -> dict[str, Any]:
        return {name: {"mean": float(rng.uniform(5, 90)), "std": float(rng.uniform(0.1, 2))} for name in FIGURES}

    rest = {"choice_temperature": 4.5, "softmax_temperature": 1.0, "guidance_scale": 0.0, "remask": 0.0, "reuse": 0}
    rest |= {"guidance_interval": "0:1"}
    settings = [{**fixed, **rest, first: x, second: y} for x in firsts for y in seconds]
    rows = [{"setting": setting, "passes": setting["steps"], "figures": figures()} for setting in settings]
    machine = {"device": "an abacus", "threads": 2, "torch": "0", "revision": "none", "date": "2000-01-01T00:00:00Z"}
    head = {"study": "grid", "command": "python", "machine": machine, "model": "a model", "weights_sha256": "0" * 64}
    data = {"data": "avatars", "images": 9, "hole": "center", "classes": False, "seeds": [0, 1]}
    references = [{"method": name, "figures": figures()} for name in REFERENCES]
    lists = {"axes": list(axes), "varied": list(axes), "rows": rows, "references": references}
    return {**head, **data, **lists, "precision": "float32"}


def test_table() -> None:
    report = made_up({"schedule": ["linear", "square"], "steps": [4, 16]})
    lines = markdown(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| schedule | steps |"))
    assert lines[head].count("not FID") == 1 and "| FID |" in lines[head]
    for row, line in zip(report["rows"], lines[head + 2 :], strict=False):
        wanted = [row["setting"]["schedule"], str(row["setting"]["steps"])]
        wanted += [f"{figure['mean']:.2f} ± {figure['std']:.2f}" for figure in row["figures"].values()]
        assert line == f"| {' | '.join(wanted)} |"
    text = "\n".join(lines)
    assert all(method in text for method in REFERENCES) and "choice temperature 4.5" in text and "steps 8" not in text
    assert "hole: center" in text and "Tokenizer only" in text and "passes" not in text


def test_table_of_whole_pictures() -> None:
    report = made_up({"guidance_scale": [0.0, 2.0], "guidance_interval": ["0:1", "0.5:1"]}) | {"hole": None}
    for row, passes in zip(report["rows"], (8, 8, 16, 12), strict=True):
        row["passes"] = passes
    lines = markdown(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| guidance scale | guidance interval | passes |"))
    assert [line.split(" | ")[2] for line in lines[head + 2 : head + 6]] == ["8", "8", "16", "12"]
    text = "\n".join(lines)
    assert "9 pictures made from nothing" in text and "Real training pictures" in text and "hole:" not in text


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    report = made_up({"schedule": ["linear", "square", "cosine"], "steps": [16, 4]})
    figure = draw_axis(pyplot, report, "steps")
    panels = figure.axes
    assert [panel.get_ylabel() for panel in panels] == list(FIGURES.values())
    for name, panel in zip(FIGURES, panels, strict=True):
        lines = {container.get_label(): container.lines for container in panel.containers}
        assert list(lines) == ["schedule linear", "schedule square", "schedule cosine"]
        for schedule in ("linear", "square", "cosine"):
            points, _, (bars,) = lines[f"schedule {schedule}"]
            found = {row["setting"]["steps"]: row for row in report["rows"] if row["setting"]["schedule"] == schedule}
            wanted = [found[steps]["figures"][name] for steps in (4, 16)]  # sorted, so that the line doesn't turn back
            assert list(points.get_xdata()) == [4, 16]
            assert list(points.get_ydata()) == [figure["mean"] for figure in wanted]
            for segment, figure_ in zip(bars.get_segments(), wanted, strict=True):
                assert np.ptp(segment[:, 1]) == pytest.approx(2 * figure_["std"])
    pyplot.close(figure)

    figure = draw_axis(pyplot, report, "schedule")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["linear", "square", "cosine"]
    (first, _, _), (second, _, _) = (container.lines for container in figure.axes[0].containers)
    places = [np.array(points.get_xdata(), float) for points in (first, second)]
    assert all(list(place.round()) == [0, 1, 2] for place in places) and not set(places[0]) & set(places[1])
    pyplot.close(figure)

    paths = draw(report, tmp_path)
    assert sorted(path.name for path in paths) == ["schedule.png", "steps.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 600


def test_without_matplotlib_there_is_all_the_rest(
    model_folder: Path, photos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(arguments(model_folder, photos, tmp_path, "--steps", "1", "2", "--seeds", "1")) == 0
    assert "[bench]" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / CUSTOM).iterdir()) == ["results.json", "results.md"]

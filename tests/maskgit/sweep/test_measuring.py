"""The sweep on tiny random models: its images and figures, going on after an interruption, what is kept."""

from __future__ import annotations

import math
import os
import shutil
import signal
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sweep import OWN, SIZE, TinyFeatures, arguments, cells, quality, results

from maskgit.data import load_dataset
from maskgit.data.pixels import plain_views
from maskgit.decoding import DecodeConfig
from maskgit.metrics.features import extract_features
from maskgit.pipeline import MaskGIT, image_seed
from maskgit.sweep import __main__ as command
from maskgit.sweep import measuring
from maskgit.sweep.__main__ import main
from maskgit.sweep.ledger import Ledger
from maskgit.sweep.making import REAL, REFERENCES, Images, load_images, make, training_pictures
from maskgit.sweep.settings import CUSTOM, Options, settings

pytest.importorskip("cv2", reason="OpenCV is not installed")

# --- images -----------------------------------------------------------------------------------------------------------


def test_images_and_their_holes(model_folder: Path, photos: Path) -> None:
    model, data = MaskGIT.from_pretrained(model_folder, device="cpu"), str(photos)
    few, all_ = (load_images(model, Options(data=data, max_images=most)) for most in (4, 10**6))
    assert len(few.numbers) == 4 and set(few.numbers) < set(all_.numbers)
    assert all_.numbers == list(range(len(load_dataset(data, SIZE, "val"))))
    # An image's hole is the same whichever others there are.
    boxes, more = (load_images(model, Options(data=data, hole="boxes", max_images=most)) for most in (4, 6))
    at = [more.numbers.index(number) for number in boxes.numbers]
    assert np.array_equal(boxes.masks, more.masks[at]) and torch.equal(boxes.pixels, more.pixels[at])
    whole = load_images(model, Options(data=data, generate=True, max_images=4))
    assert whole.masks is None and torch.equal(whole.pixels, few.pixels)
    assert len({boxes.digest, few.digest, whole.digest}) == 3


def pictures_of(photos: Path, side: str) -> list[Image.Image]:
    images = load_dataset(str(photos), SIZE, side)
    return [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in plain_views(images, range(len(images)))]


# --- the whole command ------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_inpainted_images(model_folder: Path, photos: Path, tmp_path: Path, capsys) -> None:
    more = ["--steps", "1", "3", "--temperatures", "2", "--seeds", "3", "--hole", "boxes", "--batch-size", "2"]
    assert main(arguments(model_folder, photos, tmp_path, *more)) == 0
    captured = capsys.readouterr()
    assert "not FID" in captured.out and "no FID" in captured.err
    report = results(tmp_path)
    assert (tmp_path / CUSTOM / "results.md").read_text(encoding="utf-8") in captured.out
    assert [row["setting"]["steps"] for row in report["rows"]] == [1, 3]
    assert str(photos) in report["command"] and report["command"].startswith("python -m maskgit.sweep")
    assert len(cells(tmp_path)) == 2 * 3 + len(REFERENCES) and len(report["weights_sha256"]) == 64

    model = MaskGIT.from_pretrained(model_folder, device="cpu")
    options = Options(data=str(photos), hole="boxes")
    images, network = load_images(model, options), TinyFeatures()
    assert report["images"] == len(images.numbers) >= 2
    originals = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images.pixels]
    for row in report["rows"]:
        config = replace(DecodeConfig(), steps=row["setting"]["steps"], choice_temperature=2.0)
        assert row["config"] == asdict(config)
        distances, ratios = [], []
        for seed in range(3):
            (setting,) = settings(Options(steps=(config.steps,), temperatures=(2.0,)), OWN)
            filled = make(model, images, setting, seed, batch_size=16)
            a, b = (extract_features(network, pictures).double().numpy() for pictures in (filled, originals))
            root = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).astype(complex) ** 0.5
            trace = np.trace(np.cov(a.T) + np.cov(b.T))
            distances.append(((a.mean(0) - b.mean(0)) ** 2).sum() + trace - 2 * root.sum().real)
            errors = []
            for picture, original, mask in zip(filled, originals, images.masks, strict=True):
                difference = np.asarray(picture, float)[mask] - np.asarray(original, float)[mask]
                errors.append((difference**2).mean())
            ratios.append(10 * math.log10(255**2 / statistics.fmean(errors)))
        figures = row["figures"]
        assert set(figures) == {"frechet", "psnr_in_hole", "milliseconds"}
        assert figures["frechet"]["values"] == pytest.approx(distances, rel=1e-3, abs=1e-4)
        assert figures["psnr_in_hole"]["values"] == pytest.approx(ratios, abs=1e-3)
        assert figures["psnr_in_hole"]["mean"] == pytest.approx(statistics.fmean(ratios), abs=1e-3)
        assert figures["frechet"]["std"] == pytest.approx(statistics.stdev(distances), rel=0.05, abs=1e-3)
        assert len(set(ratios)) == 3 and min(figures["milliseconds"]["values"]) > 0
    # The tokens of the originals themselves can only be nearer by chance; Telea's fill has no tokens at all.
    assert [reference["method"] for reference in report["references"]] == list(REFERENCES)
    assert len({reference["figures"]["frechet"]["mean"] for reference in report["references"]}) == 2


def count_calls(monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> list[tuple[int, int]]:
    """(steps, seed) of each cell that is measured from now on; the call after `most` of them is interrupted."""
    calls: list[tuple[int, int]] = []
    original: Callable[..., list[Image.Image]] = make

    def counting(model: Any, images: Images, setting: Any, seed: int, *rest: Any, **named: Any) -> list[Image.Image]:
        if "most" not in named:  # not the one that warms up
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append((setting.config.steps, seed))
        return original(model, images, setting, seed, *rest, **named)

    monkeypatch.setattr(measuring, "make", counting)
    return calls


def test_going_on_after_an_interruption(
    model_folder: Path, classless_folder: Path, photos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(command, "draw", lambda *_: [])  # pictures take longer than all the rest
    more = ["--steps", "1", "2", "--seeds", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(arguments(model_folder, photos, whole, *more)) == 0
    with monkeypatch.context() as patch:
        calls = count_calls(patch, most=3)
        assert main(arguments(model_folder, photos, broken, *more)) == 130
        assert calls == [(1, 0), (2, 0), (1, 1)]  # every setting once before any comes again
    assert "goes on" in capsys.readouterr().err
    assert len(cells(broken)) == 3 + len(REFERENCES) and not (broken / CUSTOM).exists()

    with open(broken / "cells.jsonl", "ab") as file:
        file.write(b'{"key": {"weig')  # the power fails while a line is written
    with monkeypatch.context() as patch:
        calls = count_calls(patch)
        assert main(arguments(model_folder, photos, broken, *more)) == 0
        assert calls == [(2, 1)]
        assert main(arguments(model_folder, photos, broken, *more)) == 0
        assert calls == [(2, 1)]  # there was nothing left to do
        assert quality(results(broken)) == quality(results(whole))

        # Another seed, another study with cells in common, other images, another model.
        assert main(arguments(model_folder, photos, broken, "--steps", "2", "--seeds", "3")) == 0
        assert calls[1:] == [(2, 2)]
        shared = ["--study", "steps", "--steps", "1", "2", "3", "--seeds", "2"]
        assert main(arguments(model_folder, photos, broken, *shared)) == 0
        assert calls[2:] == [(3, 0), (3, 1)]
        assert len(results(broken, "steps")["rows"]) == 3
        assert main(arguments(model_folder, photos, broken, *more, "--hole", "left")) == 0
        assert len(calls) == 4 + 4
        assert main(arguments(classless_folder, photos, broken, *more)) == 0
        assert len(calls) == 8 + 4


def test_two_names_of_one_setting_are_measured_once(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    own = [f"--steps {OWN.steps}", f"--softmax-temperatures {OWN.softmax_temperature}", "--decoders maskgit model"]
    assert main(arguments(model_folder, photos, tmp_path, *" ".join(own).split(), "--seeds", "1")) == 0
    first, second = results(tmp_path)["rows"]
    assert (first["setting"]["decoder"], second["setting"]["decoder"]) == ("maskgit", "model")
    assert first["figures"] == second["figures"] and len(cells(tmp_path)) == 1 + len(REFERENCES)


def test_guidance_acts_on_the_class(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    more = ["--study", "guidance", "--guidance", "0", "4", "--steps", "2", "--seeds", "1"]
    assert main(arguments(model_folder, photos, tmp_path, *more)) == 0
    report = results(tmp_path, "guidance")
    assert report["classes"] and report["axes"] == report["varied"] == ["guidance_scale"]
    without, with_ = (row["figures"]["psnr_in_hole"]["mean"] for row in report["rows"])
    assert without != with_


def test_whole_pictures(model_folder: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    """Their figures are those of the sets; a guided step is two passes; an interval changes what comes out."""
    more = ["--guidance", "0", "3", "--guidance-intervals", "0:1", "0.5:1", "--steps", "4", "--seeds", "2"]
    assert main(arguments(model_folder, photos, tmp_path, *more, "--generate")) == 0
    assert "real training pictures" in capsys.readouterr().out
    report = results(tmp_path, "grid-generate")
    assert report["hole"] is None and report["classes"] and report["axes"] == ["guidance_scale", "guidance_interval"]
    assert [row["passes"] for row in report["rows"]] == [4, 4, 8, 6]
    assert [reference["method"] for reference in report["references"]] == list(REAL)

    model, network = MaskGIT.from_pretrained(model_folder, device="cpu"), TinyFeatures()
    images = load_images(model, Options(data=str(photos), generate=True))
    real = extract_features(network, [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images.pixels]).double()
    for row in report["rows"]:
        assert set(row["figures"]) == {"frechet", "precision", "recall", "class_score", "milliseconds"}
        scale, interval = (row["setting"][name] for name in ("guidance_scale", "guidance_interval"))
        guided = DecodeConfig(steps=4, guidance_scale=scale, guidance_from=0.5 if interval == "0.5:1" else 0.0)
        made = model.generate(
            len(images.numbers),
            config=guided,
            seeds=[image_seed(1, number) for number in images.numbers],
            labels=images.labels,
        )
        ours = extract_features(network, made).double()
        for name, some, others in (("precision", ours, real), ("recall", real, ours)):
            among = (torch.cdist(some, others) < torch.cdist(others, others).sort(1).values[:, 3]).any(1)  # k = 3
            assert row["figures"][name]["values"][1] == pytest.approx(among.double().mean().item())
        shares = network.logits(ours).softmax(1).numpy()
        entropies = [-(p * np.log(p)).sum(-1) for p in (shares.mean(0), shares)]
        wanted = math.exp(entropies[0] - entropies[1].mean())  # of all less the mean of each
        assert row["figures"]["class_score"]["values"][1] == pytest.approx(wanted, rel=1e-4)
    unguided, _, whole, half = (row["figures"]["frechet"]["values"] for row in report["rows"])
    assert len({tuple(whole), tuple(unguided), tuple(half)}) == 3
    # Without guidance both intervals are the same: measured once, the time too.
    assert report["rows"][1]["figures"] == report["rows"][0]["figures"]


def test_real_pictures_are_of_the_training_side(
    model_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are others, none twice; those of another seed are others, and measured."""
    model = MaskGIT.from_pretrained(model_folder, device="cpu")
    train = {np.asarray(picture).tobytes() for picture in pictures_of(photos, "train")}
    held_out = [np.asarray(picture).tobytes() for picture in pictures_of(photos, "val")]
    assert train and not train & set(held_out)
    drawn = []
    for seed in range(2):
        options = Options(data=str(photos), generate=True, seed=seed)
        made = training_pictures(model, load_images(model, options), options)
        drawn.append({np.asarray(picture).tobytes() for picture in made})
        assert drawn[-1] < train and len(drawn[-1]) == len(made) == len(held_out)
    assert drawn[0] != drawn[1]

    monkeypatch.setattr(command, "draw", lambda *_: [])
    found = []
    for seed in ("0", "1", "0"):
        more = ["--generate", "--steps", "1", "--seeds", "1", "--seed", seed]
        assert main(arguments(model_folder, photos, tmp_path, *more)) == 0
        found.append(results(tmp_path, "grid-generate")["references"][0]["figures"])
    assert found[0] == found[2] and found[0]["frechet"] != found[1]["frechet"]
    assert len(cells(tmp_path)) == 2 * (1 + len(REAL))


def test_too_few_held_out_images_for_precision(model_folder: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    few, held_out = Path(shutil.copytree(photos, tmp_path / "few")), load_dataset(str(photos), SIZE, "val")
    for i in range(3, len(held_out)):
        (few / held_out.name(i)).unlink()
    assert main(arguments(model_folder, few, tmp_path / "new", "--steps", "1", "--generate")) == 1
    assert "only 3 held-out images: precision and recall need at least 4; add images" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_ledger(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cells.jsonl"
    ledger = Ledger(path)
    assert not path.exists()
    figures = {"frechet": float(np.random.default_rng().normal()), "milliseconds": 0.1}
    ledger.add({"a": 1, "b": {"x": 0.1}}, figures)
    ledger.add({"a": 2, "b": {"x": 0.1}}, {"frechet": 1.0})
    again = Ledger(path)
    assert again[{"b": {"x": 0.1}, "a": 1}] == figures  # the order of the names doesn't matter
    assert {"a": 1} not in again and {"a": 2, "b": {"x": 0.1}} in again

    path.write_bytes(path.read_bytes()[:-5])
    torn = Ledger(path)
    assert len(torn.cells) == 1
    torn.add({"a": 3}, {"frechet": 2.0})
    assert set(Ledger(path).cells) == set(torn.cells)


def test_wherever_the_last_line_is_torn(tmp_path: Path, capsys: Any) -> None:
    """It is removed, that is said, and the lines before it stay as they are."""
    path = tmp_path / "cells.jsonl"
    for x in range(2):
        Ledger(path).add({"x": x}, {"frechet": float(x)})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first + 1, len(whole)):
        for tail in (b"", b"\0" * 7):  # some file systems grow a file before they write into it
            path.write_bytes(whole[:end] + tail)
            ledger = Ledger(path)
            assert path.read_bytes() == whole[:first] and list(ledger.cells.values()) == [{"frechet": 0.0}]
            assert "cells.jsonl: the last line is torn" in capsys.readouterr().err
            ledger.add({"x": 1}, {"frechet": 1.0})
            assert path.read_bytes() == whole


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes here")
def test_no_half_line_counts_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part of the line is written, the rest is not, as on a full disk; then there is room again."""
    import resource

    path = tmp_path / "cells.jsonl"
    ledger = Ledger(path)
    ledger.add({"x": 1}, {"frechet": 1.0})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        with pytest.raises(OSError, match="cells.jsonl"):
            ledger.add({"x": 2}, {"frechet": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before and {"x": 2} not in ledger
    ledger.add({"x": 3}, {"frechet": 3.0})
    assert [cell["key"] for cell in cells(tmp_path)] == [{"x": 1}, {"x": 3}]
    assert set(Ledger(path).cells) == set(ledger.cells)


def test_what_is_no_ledger_stays_as_it_is(tmp_path: Path) -> None:
    """A file of that name that somebody else wrote, without an end of line too."""
    path = tmp_path / "cells.jsonl"
    for content in (b"my notes", b'{"cell": 1}\n{"cell": 2}', b'{"key": {}, "figures": {}}\nmy notes', b"[" * 10**5):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cells.jsonl, line [12]: not a finished cell"):
            Ledger(path)
        assert path.read_bytes() == content
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a file but a pipe or a device: .*cells.jsonl"):
        Ledger(path)


@pytest.mark.parametrize("name", ["results.json", "results.md", "steps.png"])
def test_files_of_others_are_not_replaced(name: str, model_folder: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / CUSTOM).mkdir()
    for content in (b"mine", b'{"study": "mine"}'):
        (tmp_path / CUSTOM / name).write_bytes(content)
        assert main(arguments(model_folder, photos, tmp_path, "--steps", "1", "2", "--seeds", "1")) == 2
        assert f"{name} is there, and not from a sweep; choose another" in capsys.readouterr().err
        assert [path.name for path in tmp_path.rglob("*")] == [CUSTOM, name]
        assert (tmp_path / CUSTOM / name).read_bytes() == content


def test_results_do_not_go_among_the_pictures(
    model_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By whatever path: the plots would be found as pictures the next time."""
    data = Path(shutil.copytree(photos, tmp_path / CUSTOM))
    before = sorted(data.rglob("*"))
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(data / "cats")
    for output in (tmp_path, data, data / "sweeps", tmp_path / "link" / "new", Path(".."), Path("../../link/x/..")):
        assert main(arguments(model_folder, data, output, "--steps", "1", "--seeds", "1")) == 2
        assert f"is inside --data {data}; choose another" in capsys.readouterr().err
    assert main(arguments(model_folder, Path("../cats"), Path("../../link/cats"), "--steps", "1")) == 2
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"key": {}}', '{"figures": {}}'])
def test_a_damaged_ledger_is_refused(line: str, model_folder: Path, photos: Path, tmp_path: Path, capsys) -> None:
    good = '{"key": {}, "figures": {}}\n'
    (tmp_path / "cells.jsonl").write_text(f"{good}{line}\n{good}")
    assert main(arguments(model_folder, photos, tmp_path, "--steps", "1", "--seeds", "1")) == 1
    assert "cells.jsonl, line 2: not a finished cell" in capsys.readouterr().err
    assert (tmp_path / "cells.jsonl").read_text() == f"{good}{line}\n{good}"

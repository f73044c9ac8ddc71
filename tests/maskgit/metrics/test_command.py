"""`python -m maskgit.metrics`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_metrics import TinyNetwork, picture, save_pictures, two_stages

from maskgit.data import ImageError
from maskgit.metrics import __main__ as command
from maskgit.metrics.features import INCEPTION_URL, extract_features
from maskgit.metrics.folders import find_pictures
from maskgit.metrics.pairs import hole_errors, perceptual_distance, psnr_of_mean_error, ssim
from maskgit.metrics.sets import class_score, frechet_distance, manifold_scores, monge_distance


@pytest.fixture
def tiny_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, no weights of Inception, and a cache of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "EfficientNetFeatures", TinyNetwork)
    monkeypatch.setattr(command, "efficientnet_stages", lambda: two_stages().stages)


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    real, generated = tmp_path / "real", tmp_path / "generated"
    save_pictures(real, [f"{i}.png" for i in range(8)])
    save_pictures(generated, [f"{i}.png" for i in range(8)], first_seed=100)
    return real, generated


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = command.main([str(argument) for argument in ("--device", "cpu", *arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_command_on_two_sets(
    two_folders: tuple[Path, Path], tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real, generated = two_folders
    status, out, err = run(capsys, real, generated, "--json", "--neighbors", 2)
    report = json.loads(out)
    assert status == 0 and INCEPTION_URL in err and "without the FID" in err
    assert "fid" not in report["inception"] and INCEPTION_URL in report["inception"]["missing"]
    network = TinyNetwork()
    features = [extract_features(network, find_pictures(folder)) for folder in two_folders]
    figures = report["efficientnet-lite0"]
    assert "not FID" in figures["note"] and "8 pictures for 27 features" in figures["caution"]
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(*features))
    assert figures["monge_distance"] == pytest.approx(monge_distance(*features)) and "not MIND" in figures["note"]
    assert figures["class_entropy_score"] == {
        "mean": pytest.approx(class_score(network.logits(features[1]))[0]),
        "splits": 1,
    }
    scores = manifold_scores(*features, 2)._asdict()
    assert {name: figures[name] for name in scores} == pytest.approx(scores)
    assert "pairs" not in report

    (kept,) = (tmp_path / "cache" / "maskgit").iterdir()  # the real pictures' features only
    status, out, err = run(capsys, real, generated, "--network", "efficientnet-lite0")
    assert status == 0 and "efficientnet-lite0, real" not in err and "efficientnet-lite0, generated" in err
    assert "not FID" in out and "Fréchet distance" in out and "Inception v3" not in out
    kept.unlink()
    assert run(capsys, real, generated, "--no-cache")[0] == 0
    assert not list((tmp_path / "cache" / "maskgit").iterdir())


def test_the_table_escapes_names(
    two_folders: tuple[Path, Path],
    tiny_networks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    evil = two_folders[0].rename(tmp_path / "a\x1b[31m\nb")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub\x1b[31m"))
    status, out, err = run(capsys, evil, two_folders[1], "--neighbors", 2)
    assert status == 0 and "\x1b[31m" not in out + err and r"a\x1b[31m\nb (8 images)" in out
    note = err[err.index("note: ") :].splitlines()
    assert r"hub\x1b[31m" in note[0] and note[1].startswith("  Download") and note[3] == "  Going on without the FID."


def test_command_on_pairs_in_holes(
    two_folders: tuple[Path, Path], tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real, generated = two_folders
    masks = tmp_path / "masks"
    masks.mkdir()
    holes = []
    for i in range(8):
        hole = np.zeros((16, 20), dtype=bool)
        hole[i : i + 3, 2 : 4 + i] = True
        holes.append(hole)
        Image.fromarray(hole).save(masks / f"{i}.png")
    status, out, _ = run(capsys, real, generated, "--network", "none", "--masks", masks, "--json")
    assert status == 0
    figures = json.loads(out)["pairs"]
    a, b = (
        torch.stack([torch.from_numpy(np.array(Image.open(folder / f"{i}.png"))).permute(2, 0, 1) for i in range(8)])
        for folder in two_folders
    )
    a, b, hidden = a / 127.5 - 1, b / 127.5 - 1, torch.from_numpy(np.stack(holes))
    absolute, square = hole_errors(a, b, hidden)
    assert figures["images"] == 8 and figures["where"] == "hole"
    assert figures["psnr"] == pytest.approx(psnr_of_mean_error(float(square.mean())), rel=1e-5)
    assert figures["l1_of_255"] == pytest.approx(127.5 * float(absolute.mean()), rel=1e-5)
    assert figures["ssim"] == pytest.approx(float(ssim(a, b, hidden).mean()), abs=1e-4)
    distance = float(perceptual_distance(two_stages(), a, b, hidden).mean())
    assert figures["perceptual_distance_not_lpips"] == pytest.approx(distance, rel=1e-4)

    inverted = run(capsys, real, generated, "--network", "none", "--masks", masks, "--invert-mask", "--json")[1]
    assert json.loads(inverted)["pairs"]["psnr"] == pytest.approx(
        psnr_of_mean_error(float(hole_errors(a, b, ~hidden)[1].mean())), rel=1e-5
    )
    status, out, _ = run(capsys, real, real, "--network", "none", "--pairs")
    assert status == 0 and "8 pairs, whole pictures" in out and "106.02 dB" in out
    assert run(capsys, real, generated, "--network", "none", "--masks", "center")[0] == 0


def test_command_with_statistics(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class TinyInception(TinyNetwork):
        name = "inception"

    monkeypatch.setattr(command, "inception", lambda weights: TinyInception())
    real, generated = (extract_features(TinyNetwork(), find_pictures(folder)) for folder in two_folders)
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=real.double().mean(0).numpy(), sigma=torch.cov(real.double().T).numpy())
    status, out, _ = run(capsys, path, two_folders[1], "--network", "inception", "--json")
    figures = json.loads(out)["inception"]
    assert status == 0 and figures["fid"] == pytest.approx(frechet_distance(real, generated), rel=1e-6)
    assert "precision" not in figures and "inception_score" in figures
    status, out, _ = run(capsys, path, two_folders[1], "--network", "inception")
    assert status == 0 and "(statistics)" in out and "FID" in out
    whole = path.read_bytes()
    np.savez(path, mean=np.zeros(27))
    for damaged in (path.read_bytes(), whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(damaged)
        status, _, err = run(capsys, path, two_folders[1], "--network", "inception")
        assert status == 1 and "no statistics" in err


def test_command_says_what_is_wrong(
    two_folders: tuple[Path, Path], tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real, generated = two_folders
    one, empty, small = tmp_path / "one", tmp_path / "empty", tmp_path / "small"
    save_pictures(one, ["0.png"])
    empty.mkdir()
    save_pictures(small, ["0.png"])
    picture((9, 30)).save(small / "0.png")
    black = tmp_path / "black.png"
    Image.new("L", (20, 16)).save(black)
    wrong: list[tuple[int, list[object], str]] = [
        (1, [tmp_path / "nowhere", generated], "no such folder"),
        (1, [real, empty], "no images"),
        (1, [real, one], "from 2 on"),
        (1, [real, generated, "--neighbors", 8], "--neighbors"),
        (1, [real, generated, "--network", "inception"], INCEPTION_URL),
        (1, [real, generated, "--inception-weights", tmp_path / "none.pth"], "none.pth"),
        (1, [real, one, "--pairs", "--network", "none"], "no picture of the same name"),
        (1, [one, small, "--pairs", "--network", "none"], "differ in size: 20x16 and 9x30"),
        (1, [small, small, "--pairs", "--network", "none"], "smaller than 11"),
        (1, [real, generated, "--network", "none", "--masks", "boxes"], "chance"),
        (1, [real, generated, "--network", "none", "--masks", tmp_path / "no-masks"], "no such file or folder"),
        (1, [real, generated, "--network", "none", "--masks", black], "no hole"),
        (1, [real, generated, "--device", "nonsense"], "device"),
        (2, [real, generated, "--network", "none"], "nothing to do"),
        (2, [real, generated, "--batch-size", 0], "batch-size"),
        (2, [real, generated, "--neighbors", 0], "neighbors"),
        (2, [real, generated, "--invert-mask"], "without --masks"),
        (2, [tmp_path / "statistics.npz", generated], "--network inception"),
        (2, [real], "generated"),
    ]
    for status, arguments, reason in wrong:
        got, out, err = run(capsys, *arguments)
        assert (got, out) == (status, "") and reason in " ".join(err.replace("│", " ").split()), (arguments, err)
    (generated / "3.png").write_bytes(b"no image")
    with pytest.raises(ImageError):
        extract_features(TinyNetwork(), find_pictures(generated))
    status, _, err = run(capsys, real, generated)
    assert status == 1 and "3.png" in err

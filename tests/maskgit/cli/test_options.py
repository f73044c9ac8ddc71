"""The options of inpaint.py: what they set, and which make no sense."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from maskgit.cli.inpaint import main
from maskgit.cli.options import Options, decode_config
from maskgit.decoding import DECODERS, DecodeConfig
from maskgit.pipeline import MaskGIT


def test_settings_of_a_decoder() -> None:
    own = DecodeConfig(steps=3, choice_temperature=1.0)
    assert decode_config(Options(), own) == own
    assert decode_config(Options(steps=9), own) == dataclasses.replace(own, steps=9)
    assert decode_config(Options(decoder="valeo"), own) == DECODERS["valeo"]
    changed = Options(decoder="valeo", steps=5, schedule="sqrt", temperature=0.0, softmax_temperature=0.9)
    assert decode_config(changed, own) == dataclasses.replace(
        DECODERS["valeo"], steps=5, schedule="sqrt", choice_temperature=0.0, softmax_temperature=0.9
    )


def test_the_interval_of_guidance_reaches_the_decoder() -> None:
    own = DecodeConfig(steps=3, guidance_scale=2.0, guidance_from=0.25)
    assert decode_config(Options(), own) == own
    given = decode_config(Options(guidance_interval=(0.5, 0.75)), own)
    assert given == dataclasses.replace(own, guidance_from=0.5, guidance_to=0.75)


def test_classes_are_listed(class_model: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One a line, with nothing else, whatever else is asked for."""
    arguments = ["--list-classes", "--output", str(tmp_path / "out"), "--images", "nowhere"]
    assert main([*arguments, "--model", str(class_model)]) == 0
    assert capsys.readouterr().out == "cats\ndogs & co\n"
    unnamed = MaskGIT.from_pretrained(class_model, device="cpu")
    unnamed.class_names = []
    unnamed.save_pretrained(tmp_path / "unnamed")
    assert main([*arguments, "--model", str(tmp_path / "unnamed")]) == 0
    assert capsys.readouterr().out == "0\n1\n"
    assert main([*arguments, "--model", str(model)]) == 2
    assert f"--list-classes: {model} was trained without classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_decoders_are_named(
    model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(images / "a.png")
    arguments = ["--images", str(images), "--model", str(model), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--decoder", "valoe"]) == 2
    error = capsys.readouterr().err
    assert "'valoe'" in error and all(name in error for name in DECODERS) and "Traceback" not in error
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"- {name}: " in text for name in DECODERS)


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--device", "toaster"], "device 'toaster' can't be used here"),
        (["--schedule", "sine"], "--schedule must be one of cosine"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (
            ["--kernels", "triton"],
            "backend 'triton' was asked for, but it needs an NVIDIA GPU, and the tensors are on cpu",
        ),
        (["--softmax-temperature", "0"], "--softmax-temperature must be positive"),
        (["--remask", "2"], "--remask must be in [0, 1], got 2"),
        (["--kernels", "cuda"], "must be one of auto, triton, torch"),
        (["--mask", "circle"], "--mask circle: no such file or folder, and not one of center"),
        (["--model", "nowhere"], "nowhere: no such model folder"),
        (["--images", "nowhere"], "--images nowhere: no such file or folder"),
        (["--images", "hollow"], "hollow: no images in this folder"),
        (["--output", "images/a.png"], "images/a.png: can't write results there"),
        (["--temperature", "-1"], "--temperature must be at least 0"),
        (["--steps", "many"], "many"),
        (["--paint", "blue"], "--paint"),
        (["--precision", "fp8"], "fp8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(
    model: Path,
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # with which Triton could run
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save(images / "a.png")
    (tmp_path / "hollow").mkdir()
    given = {"--images": "images", "--model": str(model), "--output": "out", "--device": "cpu"}
    given.update(zip(options[::2], options[1::2], strict=True))
    assert main([word for pair in given.items() for word in pair]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err and "Traceback" not in captured.err
    if captured.err.startswith("error:"):
        assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--softmax-temperature" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generate", "0"], "--generate 0: must be at least 1"),
        (["--generate", "2", "--mask", "center"], "--generate and --mask exclude each other"),
        (["--outpaint", "1", "1", "1", "1", "--box", "1", "1", "1", "1"], "--outpaint and --box exclude each other"),
        (["--box", "1", "1", "1", "1", "--mask", "half"], "--box and --mask exclude each other"),
        (["--outpaint", "1", "1", "1cm", "1"], "--outpaint 1cm: neither pixels, such as 12, nor percent"),
        (["--guidance", "2"], "--guidance needs a --class"),
        (["--guidance-interval", "0", "1"], "--guidance-interval needs a --class"),
        (["--guidance-interval", "-1", "1", "--class", "cats"], "--guidance-interval must be in [0, 1], got -1.0"),
        (
            ["--guidance-interval", "0.7", "0.3", "--class", "cats"],
            "--guidance-interval 0.7 0.3: FROM must be at most TO",
        ),
        (
            ["--guidance-interval", "0", "1", "--class", "cats"],
            "--guidance-interval: nothing is guided; give --guidance",
        ),
        (["--guidance-interval", "0", "nan", "--class", "cats"], "--guidance-interval must be in [0, 1], got nan"),
        (["--guidance", "-1", "--class", "cats"], "--guidance -1.0: must be at least 0"),
        (["--guidance", "nan", "--class", "cats"], "--guidance must be finite, got nan"),
        (["--generate", "2", "--invert-mask"], "--generate and --invert-mask exclude each other"),
        (["--outpaint", "1", "1", "1", "1", "--no-paste"], "--outpaint and --no-paste exclude each other"),
        (["--generate", "2", "--maps"], "--generate and --maps exclude each other"),
        (["--outpaint", "1", "1", "1", "1", "--maps"], "--outpaint and --maps exclude each other"),
        (["--maps", "--no-save-steps"], "--maps shows the steps: leave out --no-save-steps"),
        (["--map-at", "3", "3"], "--map-at needs --maps"),
        (["--maps", "--map-at", "3", "x"], "--map-at x: neither pixels, such as 12, nor percent"),
        (["--class", "birds"], "unknown class 'birds': choose one of cats, dogs & co"),
        (["--class", "2"], r"label 2 must be in [0, 2)"),
        (["--class", "all"], "--class all needs --generate; name one class"),
        (["--list-classes", "--model", "nowhere"], "nowhere: no such model folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_tasks_that_make_no_sense(
    class_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--model", str(class_model), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

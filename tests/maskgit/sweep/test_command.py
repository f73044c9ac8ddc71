"""What the sweep refuses, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sweep import arguments

from maskgit.sweep.__main__ import main

pytest.importorskip("cv2", reason="OpenCV is not installed")

# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, status, message",
    [
        (["--seeds", "0"], 2, "--seeds 0: must be at least 1"),
        (["--max-images", "1"], 2, "--max-images 1"),
        (["--max-images", "3", "--generate"], 2, "--max-images 3: must be at least 4"),
        (["--hole", "round"], 2, "--hole round: must be one of"),
        (["--hole", "boxes", "--generate"], 2, "--hole boxes: whole pictures have no holes"),
        (["--steps", "4", "0"], 2, "steps must be at least 1, got 0"),
        (["--schedules", "cosine", "sine"], 2, "schedule must be one of"),
        (["--decoders", "best"], 2, "decoder must be one of"),
        (["--study", "everything"], 2, "everything"),
        (["--model", "no/such/model/here"], 1, "no such model"),
        (["--data", "no/such/folder"], 1, "no such folder"),
        (["--device", "nonsense"], 1, "nonsense"),
        (["--study", "guidance", "--model", "{classless}"], 1, "knows none"),
        (["--generate", "--model", "{classless}"], 1, "knows none"),
        (["--guidance-intervals", "0.5"], 2, "guidance interval '0.5' must be FROM:TO, such as 0.5:1"),
        (["--guidance", "1", "--guidance-intervals", "1:0"], 2, "guidance_from must be at most guidance_to"),
        (["--inception-weights", "no/such/file.pth"], 1, "no/such/file.pth"),
        (["--help"], 0, "choice temperature"),
    ],
)
def test_exit_status(
    more: list[str],
    status: int,
    message: str,
    model_folder: Path,
    classless_folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys,
) -> None:
    filled = [argument.format(classless=classless_folder) for argument in more]
    assert main(arguments(model_folder, photos, tmp_path, *filled)) == status
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not list(tmp_path.iterdir())

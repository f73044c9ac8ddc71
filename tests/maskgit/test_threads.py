"""Commands let their threads wait briefly, before PyTorch is loaded; other programs and the user's word stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskgit.threads import SPINS, is_own_command, others_run

ROOT = Path(__file__).resolve().parents[2]
SAYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
SPY = f"""
import os, sys

class Spy:
    def find_spec(self, name, *_):
        if name == "torch":  # nothing of it is loaded yet, and nothing needs to be
            print(*(f"{{n}}={{os.environ[n]}}" for n in {SAYS} if n in os.environ), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Spy())
"""


def when_torch_came(folder: Path, *words: str, **environment: str) -> str:
    """Which of the settings a program that runs these words had when it imported PyTorch."""
    (folder / "sitecustomize.py").write_text(SPY)
    env = {name: value for name, value in os.environ.items() if name not in SAYS}
    env |= {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=env | environment, capture_output=True, text=True, cwd=folder, check=True)
    (line,) = done.stdout.splitlines()
    return line


COMMANDS = [
    [str(ROOT / "inpaint.py")],
    [str(ROOT / "train.py"), "tokenizer"],
    *(["-m", f"maskgit.{name}"] for name in ("app", "convert", "metrics", "metrics.card", "pictures", "sweep")),
]


@pytest.fixture
def neighbor() -> Iterator[None]:
    """Other work on every core."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("neighbor")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: Path(words[-1]).name)
def test_commands_wait_briefly(command: list[str], tmp_path: Path) -> None:
    assert when_torch_came(tmp_path, *command, "--help") == f"GOMP_SPINCOUNT={SPINS}"


@pytest.mark.usefixtures("neighbor")
def test_installed_commands_wait_briefly(tmp_path: Path) -> None:
    """What pip makes of an entry point imports a function and calls it."""
    script = tmp_path / "maskgit-inpaint"
    script.write_text("import sys\nfrom maskgit.cli.inpaint import main\nsys.exit(main())\n")
    assert when_torch_came(tmp_path, str(script), "--help") == f"GOMP_SPINCOUNT={SPINS}"


@pytest.mark.parametrize(
    "text, busy",
    [
        ("0.00 0.01 0.05 1/79 13041\n", False),
        ("3.00 0.01 0.05 2/79 13041\n", True),
        ("0.00 0.01 0.05 17/900 13041\n", True),
        ("nonsense", False),
    ],
)
def test_whether_others_run(text: str, busy: bool, tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text(text)
    assert others_run(tmp_path / "loadavg") == busy and not others_run(tmp_path / "nowhere")


@pytest.mark.parametrize("said", [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "9")])
def test_what_the_user_said_stays(said: tuple[str, str], tmp_path: Path) -> None:
    assert when_torch_came(tmp_path, "-m", "maskgit.pictures", "--help", **dict([said])) == "=".join(said)


def test_other_programs_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import maskgit")
    for words in (["-c", "import maskgit"], [str(tmp_path / "train.py")], ["-m", "train"]):
        assert when_torch_came(tmp_path, *words) == ""


def test_which_processes_are_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for script in ("inpaint.py", "./train.py", "/usr/bin/maskgit-inpaint", "maskgit-train.exe"):
        assert is_own_command([script], ["python", script])
    for started in (["-m", "maskgit.metrics"], ["-mmaskgit.app"], ["-O", "-m", "maskgit.metrics.card", "model"]):
        assert is_own_command(["-m"], ["python", *started])
    for argv, started in ((["-m"], ["-m", "mine.tool"]), (["-c"], ["-c", "import maskgit.app"]), ([""], [])):
        assert not is_own_command(argv, ["python", *started])
    assert not is_own_command([], [])
    assert not is_own_command(["elsewhere/inpaint.py"], ["python", "elsewhere/inpaint.py"])

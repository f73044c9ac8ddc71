"""One hostile input in a forked process: limits, an own folder, and what came of it."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import linecache
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case, Group, Status, Wrong
from .seeds import CANARY, Seeds

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("maskgit", "kernels", "benchmarks")
OUTCOMES = ("well", "uncaught", "hang", "memory", "wrong", "code", "left")
"""Fine or refused as documented; another exception, or death; too long; too much memory; accepted what it must not;
ran what a file said; left partial files, or changed others."""

Snapshot = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Limits:
    """What an input may take."""

    seconds: float = 75.0
    """Of CPU, or of doing nothing."""
    memory: int = 4 * 2**30
    """Bytes, beyond what the process began with."""


@dataclass
class Outcome:
    """What came of an input."""

    group: str
    name: str
    what: str
    """One of OUTCOMES."""
    kind: str = ""
    """Where and what, the same for all inputs that fail alike."""
    detail: str = ""
    output: str = ""
    seconds: float = 0.0
    size: int = 0
    """Bytes of its files."""


@dataclass
class Run:
    """An input at work."""

    group: str
    name: str
    folder: Path
    pid: int
    limits: Limits
    started: float = field(default_factory=time.monotonic)
    base: int = 0
    cpu: float = 0.0
    busy: float = field(default_factory=time.monotonic)
    """When it last used the CPU."""

    def poll(self) -> Outcome | None:
        """What came of it, once it has ended or gone beyond its limits."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return self._verdict(self.end())
        now, (cpu, memory) = time.monotonic(), _usage(self.pid)
        self.base = self.base or memory
        if cpu > self.cpu:
            self.cpu, self.busy = cpu, now
        if memory - self.base > self.limits.memory:
            return self._kill("memory")
        # A machine at work on other things is no hang: seconds of CPU count, or those without any.
        if cpu > self.limits.seconds or now - self.busy > self.limits.seconds:
            return self._kill("hang")
        return None

    def _kill(self, what: str) -> Outcome:
        os.kill(self.pid, signal.SIGUSR1)  # writes down where it is
        time.sleep(0.2)
        self.end()
        places = re.findall(r'File "(.+?)", line (\d+) in', _text(self.folder / "stack"))
        ours = [f"{Path(file).relative_to(ROOT)}:{line}" for file, line in places if _is_ours(file)]
        return self._outcome(what, ours[0] if ours else "?", _text(self.folder / "stack"))

    def end(self) -> int:
        """Kill it, and what it may have started; how it ended."""
        os.killpg(self.pid, signal.SIGKILL)  # its number is nobody else's before it has been waited for
        return os.waitpid(self.pid, 0)[1]

    def _verdict(self, status: int) -> Outcome:
        if (self.folder / CANARY).exists():
            return self._outcome("code", "ran what the input said")
        try:
            verdict = json.loads((self.folder / "verdict").read_text())
        except (OSError, ValueError):
            code = os.waitstatus_to_exitcode(status)
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return self._outcome("uncaught", name, _text(self.folder / "stack"))
        return self._outcome(verdict["what"], verdict["kind"], verdict["detail"])

    def _outcome(self, what: str, kind: str, detail: str = "") -> Outcome:
        output = _text(self.folder / "output")[-4000:]
        size = sum(entry[2] for entry in snapshot(self.folder / "work", contents=False).values())
        return Outcome(self.group, self.name, what, kind, detail, output, time.monotonic() - self.started, size)


def start(group: Group, name: str, seed: int, seeds: Seeds, folder: Path, limits: Limits) -> Run:
    """Fork a process for an input, by its name or number."""
    for part in ("work", "temporary"):
        (folder / part).mkdir(parents=True)
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            _child(group, name, seed, seeds, folder)
        finally:
            os._exit(0)
    return Run(group.name, name, folder, pid, limits)


def _child(group: Group, name: str, seed: int, seeds: Seeds, folder: Path) -> None:
    stack = open(folder / "stack", "w")
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**33, 2**33))
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", errors="backslashreplace", buffering=1) for number in (1, 2))
    os.chdir(folder / "work")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "temporary")
    verdict = _tried(group, name, seed, seeds, folder)
    (folder / "verdict").write_text(json.dumps(dict(zip(("what", "kind", "detail"), verdict, strict=True))))


def _tried(group: Group, name: str, seed: int, seeds: Seeds, folder: Path) -> tuple[str, str, str]:
    try:
        if name in group.known:
            case = group.known[name](seeds)
        else:
            case = group.random(random.Random(f"{seed}/{group.name}/{name}"), seeds)
    except BaseException:
        return "uncaught", "the generator itself", traceback.format_exc()
    before = snapshot(folder / "work")
    keeps = True
    try:
        result = case.call()
        case.check(result)
        if isinstance(result, Status):
            keeps = result.code == 0 or (result.code == 1 and case.keeps)
    except Wrong as error:
        return "wrong", str(error), traceback.format_exc()
    except BaseException as error:
        if not is_documented(error, case):
            return "uncaught", f"{place(error)} {type(error).__name__}", traceback.format_exc()
        keeps = case.keeps
    found = left(before, snapshot(folder / "work"), case.changes, keeps)
    found += [f"a file in the temporary folder ({path})" for path in snapshot(folder / "temporary")]
    return ("left", re.sub(r" \(.*", "", found[0]), "\n".join(found)) if found else ("well", "", "")


# --- what an input did ------------------------------------------------------------------------------------------------


def is_documented(error: BaseException, case: Case) -> bool:
    """Whether an exception is one that the call documents, and not one that merely looks like it."""
    if not isinstance(error, case.refusals):
        return False
    if type(error) not in (ValueError, RuntimeError):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return _is_ours(frame.filename) and linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise")


def place(error: BaseException) -> str:
    """File and line of our own code that an exception came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"


def _is_ours(file: str) -> bool:
    return any(Path(file).is_relative_to(ROOT / package) for package in PACKAGES)


def snapshot(folder: Path, contents: bool = True) -> Snapshot:
    """All that lies below a folder but folders: kind, links, size, and the SHA-256 of files that aren't huge."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(here, name)))]:
            path = os.path.join(here, name)
            status = os.lstat(path)
            digest = b""
            if contents and os.path.isfile(path) and not os.path.islink(path) and status.st_size < 2**26:
                with open(path, "rb") as file:
                    digest = hashlib.sha256(file.read()).digest()
            found[os.path.relpath(path, folder)] = (status.st_mode & 0o170000, status.st_nlink, status.st_size, digest)
    return found


def left(before: Snapshot, after: Snapshot, changes: str, keeps: bool) -> list[str]:
    """What should not be there, or is gone.

    Args:
        changes: a folder; files in it may be others, or gone.
        keeps: new files may be there, if they are finished.
    """
    changed = [path for path in before if path not in after or after[path][3] != before[path][3]]
    found = [f"a file changed ({path})" for path in changed if not changes or Path(path).parts[0] != changes]
    for path in after.keys() - before.keys():
        if any(part.startswith(".") or part.endswith(".partial") for part in Path(path).parts):
            found.append(f"an unfinished file ({path})")
        elif not keeps:
            found.append(f"a file of a refused input ({path})")
    return found


# --- processes --------------------------------------------------------------------------------------------------------


def _usage(pid: int) -> tuple[float, int]:
    """Seconds of CPU, and bytes of memory, that a process uses."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"), int(words[21]) * resource.getpagesize()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def run_all(
    todo: Iterator[tuple[Group, str]],
    seed: int,
    seeds: Seeds,
    base: Path,
    limits: Limits,
    jobs: int,
    done: Callable[[Outcome, Path], None],
) -> None:
    """Run inputs, `jobs` at a time; `done` is told of each and may take its folder away."""
    running: list[Run] = []
    count, more = 0, True
    try:
        while more or running:
            while more and len(running) < jobs:
                following = next(todo, None)
                more = following is not None
                if following is not None:
                    running.append(start(*following, seed, seeds, base / f"run-{count}", limits))
                    count += 1
            for run in list(running):
                outcome = run.poll()
                if outcome is not None:
                    running.remove(run)
                    done(outcome, run.folder)
                    shutil.rmtree(run.folder, ignore_errors=True)
            time.sleep(0.005)
    finally:
        for run in running:  # after Ctrl-C, which they don't hear of
            run.end()

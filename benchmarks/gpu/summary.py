"""What has been found so far: as JSON with all results in it, and as Markdown to be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.files import clean, read, write
from benchmarks.gpu.process import Ended
from benchmarks.gpu.steps import Step
from benchmarks.report import Row, table

FORMAT = 1  # of summary.json; see benchmarks/results/README.md
MOST_LINES = 20  # of things that went wrong, for each step


@dataclass(frozen=True)
class Entry:
    """What became of a step."""

    name: str
    proves: str
    status: Literal["passed", "failed", "out of time", "not started"]
    seconds: float = 0.0
    last_line: str = ""
    """Of what it printed."""
    compiled: int = 0
    """Kernels that came into Triton's cache meanwhile: compiled in this step, where nobody else uses that cache."""
    results: Any = None
    """What its file holds."""


class Summary:
    """Of a run."""

    def __init__(self, folder: Path, quick: bool, minutes: float) -> None:
        self.folder, self.quick, self.minutes = folder, quick, minutes
        self.entries: list[Entry] = []

    def add(self, step: Step, ended: Ended) -> None:
        """Take in a step that has ended, and write everything down."""
        lines = ended.output.strip().splitlines()
        status: Literal["passed", "failed", "out of time"] = "failed"
        if ended.code is None:
            status = "out of time"
        elif ended.code == 0 and (step.result is None or step.result.exists()):
            status = "passed"
        last_line = lines[-1][:300] if lines else f"exit status {ended.code}, and nothing was printed"
        results = None
        if step.result is not None:
            results = _tests(step.result) if step.result.suffix == ".xml" else read(step.result)
        self._add(Entry(step.name, step.proves, status, round(ended.seconds, 1), last_line, ended.compiled, results))
        if step.result is not None and results is not None and not step.kept:
            step.result.unlink()

    def not_started(self, step: Step) -> None:
        """The time was up before this step."""
        self._add(Entry(step.name, step.proves, "not started", last_line="the time was up"))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        about = {"format": FORMAT, "quick": self.quick, "minutes": self.minutes}
        write(self.folder / "summary.json", about | {"steps": [asdict(entry) for entry in self.entries]})
        (self.folder / "summary.md").write_text(clean(self.to_markdown()))

    @property
    def passed(self) -> bool:
        """Whether every step did."""
        return all(entry.status == "passed" for entry in self.entries)

    def line(self, name: str) -> str:
        """A step's outcome in one line."""
        (entry,) = (entry for entry in self.entries if entry.name == name)
        return clean("; ".join([f"{entry.status} after {entry.seconds:.0f} s", *_headline(entry)]))

    def to_markdown(self) -> str:
        """Everything of interest in the JSON."""
        facts = self._results("environment") or {}
        lines = [f"# {facts.get('device', 'An unknown device')}", ""]
        if self.quick:
            lines += ["**A rehearsal with tiny sizes: it shows that everything runs; its times mean nothing.**", ""]
        if "capability" not in facts:
            lines += ["There is no GPU here, so **no GPU figure exists**.", ""]
        lines += [f"- {name}: {value}" for name, value in facts.items() if name != "nvidia-smi"]
        lines += ["", "| step | | seconds | kernels compiled | |", "|---|---|---|---|---|"]
        for entry in self.entries:
            what = _cell("; ".join(_headline(entry)))
            lines.append(f"| {entry.name} | {entry.status} | {entry.seconds:.0f} | {entry.compiled} | {what} |")
        for entry in self.entries:
            wrong = list(_wrong(entry))
            if wrong:
                lines += ["", f"## {entry.name}: what went wrong", ""]
                lines += [f"- {_cell(line)}" for line in wrong[:MOST_LINES]]
                lines += [f"- and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else []
        for name in ("comparisons", "figures"):
            rows = [Row(**row) for row in (self._results(name) or {}).get("rows", [])]
            if rows:
                lines += ["", f"## {name}", "", *table(rows)]
        return "\n".join(lines) + "\n"

    def _results(self, name: str) -> Any:
        return next((entry.results for entry in self.entries if entry.name == name), None)


def _headline(entry: Entry) -> Iterator[str]:
    """The step's figures in a few words."""
    results = entry.results or {}
    if entry.name == "environment" and results:
        yield f"{results['device']}, torch {results['torch']}, triton {results['triton']}"
    elif entry.name in ("verify", "tests") and results:
        yield ", ".join(f"{results[name]} {name}" for name in ("passed", "failed", "skipped") if name in results)
    elif entry.name == "smoke" and results:
        yield from (f"{check['check']}: {check['finding']}" for check in results.get("checks", []))
    elif entry.name in ("comparisons", "figures") and results:
        yield f"{results['done']} of {results['planned']} comparisons"
    for found in results.get("batch dependence", []) if isinstance(results, dict) else []:
        yield (
            f"{found['precision']}: {found['different']} of {found['pictures']} pictures differ in batches of "
            f"{found['batch']}"
        )
    if entry.status != "passed" or not results:
        yield entry.last_line


def _wrong(entry: Entry) -> Iterator[str]:
    """What the step found wrong, in words."""
    results = entry.results or {}
    if entry.name == "verify":
        for check in results.get("checks", []):
            if check["status"] != "pass":
                yield f"{check['operator']}, {check['case']}: {check['reason']}"
    elif entry.name == "tests":
        yield from results.get("failures", [])
    elif entry.name in ("comparisons", "figures"):
        for row in results.get("rows", []):
            if row["status"] == "refused":
                yield f"{row['suite']}, {row['comparison']}, {row['implementation']}: {row['reason']}"


def _tests(path: Path) -> dict[str, Any] | None:
    """What pytest's report holds: counts, and each failure's name and message."""
    try:
        text = path.read_text()
        root = ET.fromstring(text)
    except (OSError, ET.ParseError):
        return None
    path.write_text(re.sub(r' hostname="[^"]*"', "", text))
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in root.iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        for part in bad:
            message = (part.get("message") or "").splitlines()
            failures.append(f"{case.get('classname')}::{case.get('name')}: {message[0][:300] if message else ''}")
    return {**counts, "failures": failures}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

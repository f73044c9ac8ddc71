"""What has been found so far: as JSON with all results in it, and as Markdown to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import promises
from benchmarks.gpu.files import clean, read, write
from benchmarks.gpu.process import Ended
from benchmarks.gpu.steps import Step
from maskgit.console import markdown_table

FORMAT = 2  # of summary.json; see benchmarks/results/README.md
MOST_LINES = 20  # of things that went wrong, for each step


Status = Literal["passed", "failed", "out of time", "not started"]


@dataclass(frozen=True)
class Entry:
    """What became of a step."""

    name: str
    proves: str
    status: Status
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
        done = ended.code == 0 and (step.result is None or step.result.exists())
        status: Status = "out of time" if ended.code is None else "passed" if done else "failed"
        lines = ended.output.strip().splitlines()
        last_line = lines[-1][:300] if lines else f"exit status {ended.code}, and nothing was printed"
        results = None if step.result is None else read(step.result)
        self._add(Entry(step.name, step.proves, status, round(ended.seconds, 1), last_line, ended.compiled, results))
        if step.result is not None and results is not None and not step.kept:
            step.result.unlink()

    def not_started(self, step: Step, why: str) -> None:
        """The step was left out."""
        self._add(Entry(step.name, step.proves, "not started", last_line=why))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        about = {"format": FORMAT, "quick": self.quick, "minutes": self.minutes}
        write(self.folder / "summary.json", about | {"steps": [asdict(entry) for entry in self.entries]})
        (self.folder / "summary.md").write_text(clean(self.to_markdown()))

    @property
    def passed(self) -> bool:
        """Whether every step did."""
        return all(entry.status == "passed" for entry in self.entries)

    def last_line(self) -> str:
        """The outcome of the step that came last."""
        entry = self.entries[-1]
        return clean("; ".join([f"{entry.status} after {entry.seconds:.0f} s", *_headline(entry)]))

    def to_markdown(self) -> str:
        """Everything of interest in the JSON."""
        facts = next((entry.results for entry in self.entries if entry.name == "environment"), None) or {}
        lines = [f"# {facts.get('device', 'An unknown device')}", ""]
        if self.quick:
            lines += ["**A rehearsal with tiny sizes: it shows that everything runs; its times mean nothing.**", ""]
        if "capability" not in facts:
            lines += ["There is no GPU here, so **no GPU figure exists**.", ""]
        lines += [*(f"- {name}: {value}" for name, value in facts.items() if name != "nvidia-smi"), ""]
        head, rows = ["step", "", "seconds", "kernels compiled", ""], []
        for step in self.entries:
            rows.append([step.name, step.status, f"{step.seconds:.0f}", str(step.compiled), _cell(*_headline(step))])
        lines += markdown_table(head, rows)
        for step in self.entries:
            if wrong := [f"- {_cell(line)}" for line in _wrong(step)]:
                more = [f"- and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else []
                lines += [f"## {step.name}: what went wrong", "", *wrong[:MOST_LINES], *more, ""]
        for step in self.entries:
            if step.results and "benchmarks" in step.results and step.results["benchmarks"]:
                lines += [f"## {step.name}", "", *promises.table(promises.rows(step.results)), *_skipped(step), ""]
        return "\n".join(lines)


def _headline(entry: Entry) -> Iterator[str]:
    """The step's figures in a few words."""
    results = entry.results or {}
    if entry.name == "environment" and results:
        yield f"{results['device']}, torch {results['torch']}, triton {results['triton']}"
    elif entry.name == "verify" and results:
        yield f"{results['passed']} passed, {results['failed']} failed"
    elif entry.name == "smoke" and results:
        yield from (f"{check['check']}: {check['finding']}" for check in results.get("checks", []))
    elif "outcomes" in results:
        counts = Counter(outcome.split(":")[0] for outcome in results["outcomes"].values())
        yield ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        if left := results.get("planned", 0) - counts.total():
            yield f"{left} not run"
    if entry.status != "passed" or not results:
        yield entry.last_line


def _wrong(entry: Entry) -> Iterator[str]:
    """What the step found wrong, in words."""
    results = entry.results or {}
    if entry.name == "verify":
        for check in results.get("checks", []):
            if check["status"] != "pass":
                yield f"{check['operator']}, {check['case']}: {check['reason']}"
    elif "outcomes" in results:
        yield from (
            f"{name} {outcome}" for name, outcome in results["outcomes"].items() if outcome.startswith("failed")
        )


def _skipped(entry: Entry) -> list[str]:
    """Each reason once."""
    skipped = Counter(outcome for outcome in entry.results["outcomes"].values() if outcome.startswith("skipped"))
    return [f"- {number} {_cell(outcome)}" for outcome, number in skipped.items()]


def _cell(*texts: str) -> str:
    return "; ".join(texts).replace("|", "\\|").replace("\n", " ")

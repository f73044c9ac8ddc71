"""The results as a table that grows, as JSON and as JUnit's XML."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.etree import ElementTree

from benchmarks.verify.workers import Outcome

_COLUMNS = "{:<18} {:>9} {:>9} {:>8} {:>9}  {:<4} {:>5}  {}"
HEADING = _COLUMNS.format("operator", "error", "PyTorch's", "ratio", "limit", "", "s", "case")


@dataclass(frozen=True)
class Check:
    """A line of the table."""

    operator: str
    case: str
    error: float | None
    reference_error: float | None
    limit: float | None
    status: str  # "pass" or "FAIL"
    reason: str  # why it failed, or what else there is to say
    seconds: float  # of the task that it is part of

    def __str__(self) -> str:
        if self.error is None or self.reference_error is None or self.limit is None:
            numbers = ["-"] * 4
        else:
            ratio = "-" if self.reference_error == 0 else f"{self.error / self.reference_error:.3g}"
            numbers = [f"{self.error:.2e}", f"{self.reference_error:.2e}", ratio, f"{self.limit:.2e}"]
        case = f"{self.case} ({self.reason})" if self.reason else self.case
        return _COLUMNS.format(self.operator, *numbers, self.status, f"{self.seconds:.1f}", case)


@dataclass
class Report:
    """All checks so far, and where they are made."""

    device: str
    torch: str
    triton: str
    tasks: int  # how many there are to be done
    done: int = 0
    compilations: int = 0
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> int:
        return sum(check.status == "pass" for check in self.checks)

    @property
    def failed(self) -> int:
        return len(self.checks) - self.passed

    def add(self, outcome: Outcome) -> list[Check]:
        """The new lines."""
        new = [
            Check(
                found.operator,
                found.case,
                found.error,
                found.reference_error,
                found.limit,
                "pass" if found.passes else "FAIL",
                "not finite: elements unwritten or overflown" if math.isnan(found.error) else found.note,
                outcome.seconds,
            )
            for found in outcome.measurements
        ]
        if outcome.error is not None:
            task = outcome.task
            new.append(Check(task.operator, task.case, None, None, None, "FAIL", outcome.error, outcome.seconds))
        self.done += 1
        self.compilations += outcome.compilations
        self.checks += new
        return new

    def as_json(self) -> str:
        values = asdict(self) | dict(passed=self.passed, failed=self.failed)
        return json.dumps(_finite(values), indent=1) + "\n"

    def as_junit(self) -> str:
        suite = ElementTree.Element(
            "testsuite", name="benchmarks.verify", tests=str(len(self.checks)), failures=str(self.failed)
        )
        properties = ElementTree.SubElement(suite, "properties")
        for name in ("device", "torch", "triton"):
            ElementTree.SubElement(properties, "property", name=name, value=getattr(self, name))
        for check in self.checks:
            case = ElementTree.SubElement(
                suite, "testcase", classname=check.operator, name=check.case, time=f"{check.seconds:.3f}"
            )
            if check.status == "FAIL":
                ElementTree.SubElement(case, "failure", message=check.reason or "error above limit").text = str(check)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

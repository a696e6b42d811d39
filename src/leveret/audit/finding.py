"""What an audit says: a stamp, with a finding for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. An error stops training."""

    severity: Severity
    what: str
    where: str
    mend: str

    def told(self) -> str:
        return f"{self.where}: {self.what}; {self.mend}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What became of an audit. looked_at: what was compared, in a few words. not_run: why it was not, if so."""

    audit: str
    findings: Sequence[Finding] = ()
    looked_at: str = ""
    not_run: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Literal["passed", "findings", "not run"]:
        if self.not_run is not None:
            return "not run"
        return "findings" if self.findings else "passed"

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_json(self) -> dict[str, Any]:
        return {
            "audit": self.audit,
            "state": self.state,
            "not_run": self.not_run,
            "looked_at": self.looked_at,
            "findings": [asdict(finding) for finding in self.findings],
            "facts": self.facts,
        }

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> Stamp:
        findings = [Finding(**finding) for finding in facts["findings"]]
        return cls(facts["audit"], findings, facts["looked_at"], facts["not_run"], facts["facts"])


def lines(stamps: Iterable[Stamp]) -> list[str]:
    """For a terminal: a line for each audit, and one for each finding under it."""
    found = []
    for stamp in stamps:
        found.append(f"{stamp.audit:<22}{stamp.state:<10}{stamp.not_run or stamp.looked_at}")
        found += [f"  {finding.severity}: {finding.told()}" for finding in stamp.findings]
    return found


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"

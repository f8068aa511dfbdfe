"""What a check found: a row for each property, printed as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import wrap

REQUIRED = "sizes"  # without this row nothing has been compared


@dataclass
class Row:
    """One property of a recurrent layer."""

    name: str
    """Which property; ``prnn.check.CHECKS`` lists them."""
    bound: float | None
    """What the error may be: relative to a tensor's norm, or 0 where the bits must be equal."""
    cases: int = 0
    """How many calls were compared."""
    error: float | None = None
    """The largest error of all cases; infinite for a wrong shape, a NaN, or an exception."""
    passed: bool | None = None
    """None: not supported, or information that decides nothing."""
    words: str = ""
    """The first failing case; why a row is not supported; what an information says."""
    information: bool = False
    seconds: float = 0.0

    @property
    def result(self) -> str:
        """As the table has it."""
        if self.passed is None:
            return "information" if self.information else "not supported"
        return "passed" if self.passed else "FAILED"


@dataclass
class Report:
    """The rows of one check. ``ok``, ``report["resets"]`` and ``str(report)``, a table."""

    title: str
    """What was checked."""
    runs: str
    """What computed it, and what it was compared with."""
    rows: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no row failed, and the outputs and gradients could be compared at all."""
        return not self.failed and self[REQUIRED].passed is True

    @property
    def failed(self) -> list[str]:
        """The names of the rows that failed."""
        return [row.name for row in self.rows if row.passed is False]

    def __getitem__(self, name: str) -> Row:
        """The row of a name; KeyError for an unknown one."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [self.title, *wrap(self.runs, 110, initial_indent="  ", subsequent_indent="  "), ""]
        lines.append(f"{'':{width}}  cases  largest error    bound  result")
        for row in self.rows:
            tried = row.passed is not None or row.information
            error = f"{row.error:13.1e}" if tried and row.error is not None else f"{'-':>13}"
            bound = f"{row.bound:7.0e}" if tried and row.bound is not None else f"{'-':>7}"
            lines.append(f"{row.name:{width}}  {row.cases:5}  {error}  {bound}  {row.result}")
            if row.words:
                indent = " " * (width + 2)
                lines += wrap(row.words, 110, initial_indent=indent, subsequent_indent=indent)
        passed = sum(row.passed is True for row in self.rows)
        absent = sum(row.passed is None for row in self.rows)
        lines += ["", f"{passed} passed, {len(self.failed)} failed, {absent} not supported or information"]
        return "\n".join(lines)

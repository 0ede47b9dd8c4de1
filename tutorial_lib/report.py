"""Reports the results of checks: as a table in a notebook, as text in a terminal."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One row: what was checked, what was found, and what to do if that is not enough.

    Attributes:
        ok: True for [OK], False for [FAIL], None for information only: [--].
    """

    name: str
    ok: bool | None
    found: str
    fix: str = ""

    @property
    def mark(self) -> str:
        return {True: "[OK]", False: "[FAIL]", None: "[--]"}[self.ok]


@dataclass(frozen=True, repr=False)
class Report:
    """The results of checks, one row each."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def __str__(self) -> str:
        wide = max(len(check.name) for check in self.checks)
        rows = []
        for check in self.checks:
            fix = f"\n{'':6} fix: {check.fix}" if check.fix else ""
            rows.append(f"{check.mark:6} {check.name:{wide}}  {check.found}{fix}")
        return "\n".join(rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = ["<tr><th></th><th>what</th><th>found</th><th>fix</th></tr>"]
        for check in self.checks:
            cells = (check.mark, check.name, check.found, check.fix)
            cell = "<td style='text-align:left'>{}</td>".format
            rows.append(f"<tr>{''.join(cell(html.escape(text)) for text in cells)}</tr>")
        return f"<table>{''.join(rows)}</table>"

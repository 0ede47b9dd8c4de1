"""Compares answers, and reports the results of checks: as a table in a notebook, as text in a terminal."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real


def alike(one: object, two: object, rel: float, abs: float) -> bool:
    """Returns whether two values of JSON are equal, where floats may differ: a batch changes last digits.

    >>> alike({"scores": [0.30000001]}, {"scores": [0.3]}, 0.001, 0), alike(1, 2, 0.001, 0)
    (True, False)
    """
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(alike(one[key], two[key], rel, abs) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(alike(a, b, rel, abs) for a, b in zip(one, two, strict=True))
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    are_whole = isinstance(one, Integral) and isinstance(two, Integral)
    if isinstance(one, Real) and isinstance(two, Real) and not are_whole:
        return math.isclose(one, two, rel_tol=rel, abs_tol=abs)
    return bool(one == two)


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

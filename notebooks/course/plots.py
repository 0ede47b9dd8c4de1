"""Plots that chapters share."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, display


def every(pause: float, seconds: float) -> Iterator[float]:
    """Comes back after each pause, until the seconds are over; gives the time since the last look.

    >>> len(list(every(0.01, 0.1))) > 1
    True
    """
    began = last = time.monotonic()
    while last < began + seconds:
        time.sleep(pause)
        now = time.monotonic()
        yield now - last
        last = now


class LivePlot:
    """A plot for each column, in one row, which grows while the cell runs.

    Attributes:
        table: what was added, with the column "seconds".
    """

    def __init__(self, *columns: str) -> None:
        self.table = pd.DataFrame()
        self._columns, self._began = columns, time.monotonic()
        self._figure, self._axes = plt.subplots(1, len(columns), figsize=(11, 2.6), layout="constrained")
        self._shown = display(self._figure, display_id=True)  # type: ignore[no-untyped-call]

    def add(self, values: Mapping[str, float]) -> None:
        """Adds a point to each plot."""
        row = {"seconds": time.monotonic() - self._began, **values}
        self.table = pd.concat([self.table, pd.DataFrame([row])], ignore_index=True)
        for axis, column in zip(self._axes, self._columns, strict=True):
            axis.clear()
            axis.plot(self.table["seconds"], self.table[column], "o-", markersize=3)
            axis.set(title=column, xlabel="seconds", ylim=(0, None))
        self._shown.update(self._figure)

    def close(self) -> None:
        """Ends the plot, so that the notebook does not show it a second time."""
        plt.close(self._figure)


def stacked_shares(table: pd.DataFrame, colors: Any) -> None:
    """A bar for each row, from the top, of the shares in its columns, which have these colors."""
    axis = table.plot.barh(stacked=True, figsize=(7, 2.2), color=colors)
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.xaxis.set_major_formatter("{x:.0%}")
    plt.show()


def highlighted(rows: Iterable[tuple[str, Sequence[tuple[str, float]]]]) -> HTML:
    """A table of texts whose words are green or red, the stronger the larger their share is.

    Args:
        rows: a label, and words with their shares: green where the share is above 0.
    """
    cells = "".join(
        f"<tr><th>{html.escape(label)}</th><td style='text-align: left'>{_colored(words)}</td></tr>"
        for label, words in rows
    )
    return HTML(f"<table style='line-height: 2'>{cells}</table>")  # type: ignore[no-untyped-call]


def _colored(words: Sequence[tuple[str, float]]) -> str:
    strongest = max(abs(share) for _, share in words)
    return "".join(
        f"<span title='{share:+.2f}' style='padding: 3px 5px; border-radius: 4px; margin: 1px; background:"
        f" rgba({'40, 160, 70' if share > 0 else '220, 50, 50'}, {abs(share) / strongest:.2f})'>"
        f"{html.escape(word)}</span>"
        for word, share in words
    )


def steps(curves: Mapping[str, Sequence[tuple[float, float]]], **labels: str) -> None:
    """A curve of steps for each name, from points; `labels` are those of the plot (xlabel, ylabel, title)."""
    figure, axis = plt.subplots(figsize=(7, 2.8))
    for name, points in curves.items():
        axis.step(*zip(*points, strict=True), where="post", label=name)
    axis.set(**labels)
    axis.legend()
    figure.tight_layout()
    plt.show()

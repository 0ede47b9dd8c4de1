"""Plots that chapters share."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, display

from course.logs import Batch


def every(pause: float, seconds: float) -> Iterator[float]:
    """Yields the time since the last yield, after each pause, until the seconds are over.

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
    """A row of plots, one for each column, which grow while the cell runs.

    Attributes:
        table: the added values, with the column "seconds".
    """

    def __init__(self, *columns: str) -> None:
        self.table = pd.DataFrame()
        self._columns, self._began = columns, time.monotonic()
        self._figure, self._axes = plt.subplots(1, len(columns), figsize=(11, 2.6), layout="constrained")
        self._shown = display(self._figure, display_id=True)

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
    """Plots a bar for each row, from the top, of the shares in the row's columns, in these colors."""
    axis = table.plot.barh(stacked=True, figsize=(7, 2.2), color=colors)
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.xaxis.set_major_formatter("{x:.0%}")
    plt.show()


def highlighted(rows: Iterable[tuple[str, Sequence[tuple[str, float]]]]) -> HTML:
    """Returns a table of texts whose words are green or red; a larger share gives a stronger color.

    Args:
        rows: a label, and words with their shares: green where the share is above 0.
    """
    cells = "".join(
        f"<tr><th>{html.escape(label)}</th><td style='text-align: left'>{_colored(words)}</td></tr>"
        for label, words in rows
    )
    return HTML(f"<table style='line-height: 2'>{cells}</table>")


def _colored(words: Sequence[tuple[str, float]]) -> str:
    strongest = max(abs(share) for _, share in words)
    return "".join(
        f"<span title='{share:+.2f}' style='padding: 3px 5px; border-radius: 4px; margin: 1px; background:"
        f" rgba({'40, 160, 70' if share > 0 else '220, 50, 50'}, {abs(share) / strongest:.2f})'>"
        f"{html.escape(word)}</span>"
        for word, share in words
    )


def steps(curves: Mapping[str, Sequence[tuple[float, float]]], **labels: str) -> None:
    """Plots a curve of steps for each name, from points; `labels` are the plot's (xlabel, ylabel, title)."""
    figure, axis = plt.subplots(figsize=(7, 2.8))
    for name, points in curves.items():
        axis.step(*zip(*points, strict=True), where="post", label=name)
    axis.set(**labels)
    axis.legend()
    figure.tight_layout()
    plt.show()


def waiting_and_working(bursts: Mapping[str, tuple[Sequence[tuple[float, float]], Sequence[Batch]]]) -> None:
    """Plots a row for each request of each burst: grey while it waits, coloured while the model works.

    Args:
        bursts: by name, when each request was sent and answered, and the batches that they went into, first
            come, first served.
    """
    figure, axes = plt.subplots(len(bursts), 1, figsize=(9, 8), sharex=True, layout="constrained")
    for axis, (name, (times, found)) in zip(axes, bursts.items(), strict=True):
        zero, members = times[0][0], iter(range(len(times)))
        for number, (size, began, ended) in enumerate(found):
            for row in (next(members) for _ in range(size)):
                sent = times[row][0]
                axis.barh(row, 1000 * (began - sent), left=1000 * (sent - zero), color="lightgrey")
                axis.barh(row, 1000 * (ended - began), left=1000 * (began - zero), color=f"C{number % 10}")
        axis.set(title=f"{name}: {len(found)} batches", ylabel="request")
        axis.invert_yaxis()
    figure.supxlabel(
        "milliseconds since the first request; grey: waiting, coloured: in the model, one colour a batch",
        fontsize="medium",
    )
    plt.show()


def load_curves(sweeps: Mapping[str, pd.DataFrame]) -> None:
    """Plots rates and times of some results of `load_test`, by the number of clients."""
    _, (rates, waits) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name, rows in sweeps.items():
        (line,) = rates.plot(rows["clients"], rows["requests_per_s"], marker="o", label=name)
        waits.plot(rows["clients"], rows["p50_ms"], marker="o", color=line.get_color())
        waits.plot(rows["clients"], rows["p99_ms"], marker=".", linestyle=":", color=line.get_color())
    rates.set(xlabel="clients", ylabel="right answers a second", ylim=(0, None))
    waits.set(xlabel="clients", ylabel="milliseconds (dotted: p99)", yscale="log")
    rates.legend(fontsize="small")
    plt.show()


def bars(values: pd.Series[float], xlabel: str, **lines: float) -> None:
    """Plots a bar for each value, from the top, and vertical lines at other values, by name."""
    _, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    axis.bar_label(axis.barh(values.index[::-1], values[::-1], color="tab:blue"), fmt="%.2f", padding=3)
    for name, at in lines.items():
        axis.axvline(at, color="tab:orange", label=f"{name}: {at:.2f}")
    axis.set(xlabel=xlabel)
    axis.margins(x=0.1)
    axis.legend()
    plt.show()


def answers_and_errors(
    timeline: Sequence[tuple[float, float, int]], title: str, marks: Mapping[str, float]
) -> None:
    """Plots a point for each answer, at the second when it came: blue for a 200, red for an error.

    Args:
        timeline: when each request was sent and answered, by one clock, and its status.
        title: the plot's title.
        marks: what else happened, and when, by the same clock.
    """
    _, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
    zero = timeline[0][0]
    for sent, answered, status in timeline:
        color = "tab:blue" if status == 200 else "tab:red"
        axis.plot(answered - zero, answered - sent, "o", markersize=4, color=color)
    _mark(axis, {name: at - zero for name, at in marks.items()})
    axis.set(xlabel="seconds", ylabel="answer took (s)", title=title)
    plt.show()


def answers_over_time(seconds: Sequence[float], marks: Mapping[str, float]) -> None:
    """Plots how many answers came in each quarter of a second, and what else happened when."""
    _, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axis.hist(seconds, bins=max(1, round(4 * (max(seconds) - min(seconds)))), color="#8fb8de")
    _mark(axis, marks)
    axis.set(xlabel="seconds", ylabel="answers in about 1/4 s")
    plt.show()


def predicted_and_measured(checked: pd.DataFrame) -> None:
    """Plots predicted values as lines and measured ones as points, for each name of the first index level."""
    names = checked.index.unique(0)
    _, axes = plt.subplots(1, len(names), figsize=(9, 3), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        rows = checked.loc[name, ["predicted", "measured"]].astype(float)
        rows.plot(ax=axis, style=["--", "o"], title=name)
        axis.set(xlabel="replicas", ylabel="requests per second", ylim=(0, None), xticks=list(rows.index))
    plt.show()


def _mark(axis: Any, marks: Mapping[str, float]) -> None:
    left, right = axis.get_xlim()
    for number, (name, at) in enumerate(marks.items()):
        side = "right" if at > (left + right) / 2 else "left"  # the text stays inside the plot
        axis.axvline(at, color=f"C{number + 3}", linestyle=":")
        axis.text(at, axis.get_ylim()[1], f" {name} ", color=f"C{number + 3}", va="top", ha=side)

"""What a figure is made of: series of measurements, one value a round, and goals for what follows from them."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


class Series:
    """The same thing measured in several rounds."""

    def __init__(self, label: str, unit: str, values: Sequence[float]) -> None:
        self.label = label
        self.unit = unit
        self.values = list(values)

    @property
    def median(self) -> float:
        return median(self.values)

    def line(self) -> str:
        """For people: median, and the extremes."""
        low, middle, high = (_digits(v) for v in (min(self.values), self.median, max(self.values)))
        return f"  {self.label:<58} {middle:>8} {self.unit}  (min {low}, max {high}, {len(self.values)} rounds)"

    def as_json(self) -> Mapping[str, Any]:
        low, high = min(self.values), max(self.values)
        return {"label": self.label, "unit": self.unit, "min": low, "median": self.median, "max": high,
                "values": self.values}  # fmt: skip


class Goal:
    """One number and the most that it may be; without a limit it is only told."""

    def __init__(self, label: str, value: float, unit: str, at_most: float | None = None) -> None:
        self.label = label
        self.value = value
        self.unit = unit
        self.at_most = at_most

    @property
    def missed(self) -> bool:
        return self.at_most is not None and self.value > self.at_most

    def line(self) -> str:
        verdict = ""
        if self.at_most is not None:
            verdict = f"  goal: at most {self.at_most:g} {self.unit}: {'MISSED' if self.missed else 'reached'}"
        return f"  {self.label:<58} {_digits(self.value):>8} {self.unit}{verdict}"

    def as_json(self) -> Mapping[str, Any]:
        return {"label": self.label, "value": self.value, "unit": self.unit, "at_most": self.at_most,
                "missed": self.missed}  # fmt: skip


class Figure:
    """One of the things that the benchmark measures."""

    def __init__(self, title: str, series: Sequence[Series], goals: Sequence[Goal], notes: Sequence[str] = ()) -> None:
        self.title = title
        self.series = series
        self.goals = goals
        self.notes = notes
        """What could not be measured, and why."""

    def text(self) -> str:
        lines = [self.title, *(s.line() for s in self.series), *(g.line() for g in self.goals)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def as_json(self) -> Mapping[str, Any]:
        return {
            "title": self.title,
            "series": [s.as_json() for s in self.series],
            "goals": [g.as_json() for g in self.goals],
            "notes": list(self.notes),
        }


def ratio(over: Series, under: Series, at_most: float | None = None) -> Goal:
    """The ratio of two series' medians."""
    return Goal(f"{over.label} / {under.label}", over.median / under.median, "×", at_most)


def _digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

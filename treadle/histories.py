"""The history that a person means: of a plan that a gateway knows, or of a `.treadle` file.

A gateway's is downloaded as a light archive into a temporary directory. From then on nothing but that file is looked
at, so that looking back needs no more than the right to read the plan.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from shared.history.archive import Archive
from shared.history.archive_format import SUFFIX
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.history import History, NoSuchMoment
from shared.history.moment import Moment
from shared.history.times import has_fraction
from treadle.api import Gateway, checked
from treadle.archive_files import STANDARD_STREAM, readable
from treadle.bad_input import BadInput
from treadle.found import find_plan
from treadle.instance import Instance
from treadle.plain_text import one_line, plain


class OpenedHistory(History):
    """A history under the id that was asked for: an imported plan has another one than in its events."""

    def __init__(self, file: EventFile, asked: str) -> None:
        super().__init__(file)
        self.asked = asked

    def moment(self, seq: int) -> Moment:
        """See `History.moment`."""
        return msgspec.structs.replace(super().moment(seq), plan=self.asked)


@contextlib.contextmanager
def open_history(instance: Instance, plan_or_file: str | None) -> Iterator[OpenedHistory]:
    """The history of a plan (an id, the beginning of one, None for the newest) or of a `.treadle` file (`-`: a pipe).

    The suite is needed no longer than the download takes. Raises `BadInput` for what is no plan, no moment of it, or a
    damaged file (also where the body of the `with` raises these), `ApiError` and httpx's errors.
    """
    with tempfile.TemporaryDirectory(prefix="treadle-") as made, _damage_is_bad_input():
        directory = Path(made)
        named = named_file(plan_or_file)
        if named is None:
            path = directory / f"plan{SUFFIX}"
            asked = _downloaded(instance, plan_or_file, path)
        else:
            asked, path = None, named
        with readable(path) as whole, _opened(whole) as archive, archive.event_file(directory) as file:
            history = OpenedHistory(file, asked or file.plan)
            if named is not None:  # nobody has looked yet whether it can be one
                history.check_order()
            yield history


def seq_of(history: History, at: str) -> int:
    """The sequence that a person means: `123`, `end`, or a time, which is this machine's where it names no zone.

    Times are shown so too, most without their fraction: then it is the whole second. Raises `NoSuchMoment`.
    """
    return history.seq_of(_with_zone(at))


def end_words(history: History, at: str) -> str:
    """What is to be said of a moment for which `seq_of` found the end though it comes after it; empty for others."""
    if not history.is_behind_end(_with_zone(at)):
        return ""
    last = history.last_seq
    time = history.file.time_of(last).astimezone()
    return f"the plan's last event is {last}, of {time:%Y-%m-%d %H:%M:%S}; this is how it stood after it"


def _with_zone(at: str) -> str:
    if at.strip().isdecimal():  # a sequence can look like a date
        return at
    try:
        time = datetime.fromisoformat(at.strip())
        shown = "microseconds" if has_fraction(at) else "seconds"
        return (time if time.tzinfo else time.astimezone()).isoformat(timespec=shown)
    except (ValueError, OverflowError):  # what it has to be, the history says
        return at


def named_file(plan_or_file: str | None) -> Path | None:
    """The file that is meant, `-` for standard input; None for a plan's id, which has neither dot nor slash."""
    if plan_or_file is None or not (plan_or_file == STANDARD_STREAM or os.sep in plan_or_file or "." in plan_or_file):
        return None
    return Path(plan_or_file)


def _opened(path: Path) -> Archive:
    try:
        return Archive.open(path)
    except OSError as error:
        raise BadInput(f"{one_line(str(path))} can't be read: {error.strerror}") from error


def _downloaded(instance: Instance, plan: str | None, path: Path) -> str:
    """Its id."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = str(find_plan(gateway, plan)["plan"])
        download(gateway, found, path, parts="events")
    return found


def download(gateway: Gateway, plan: str, path: Path, **params: str) -> None:
    """A plan's archive, as the gateway makes it. Raises `ApiError`, httpx's errors and `OSError`."""
    with gateway.http.stream("GET", f"/plans/{plan}/export", params=params) as answer, path.open("xb") as file:
        for piece in checked(answer).iter_bytes():
            file.write(piece)


@contextlib.contextmanager
def _damage_is_bad_input() -> Iterator[None]:
    try:
        yield
    except (HistoryDamaged, NoSuchMoment) as error:
        raise BadInput(plain(str(error))) from error

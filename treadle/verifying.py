"""`treadle replay --verify` and `--policy`: a history decided again, and what other settings would have made of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from services.planner.faults import PlanFaults
from services.planner.parse import parse_text
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.policy import BadPolicy, Policy, policy_of
from shared.history.schedule import rehearse
from shared.history.verify import Difference, Verified, verify
from treadle.archive_files import STANDARD_STREAM, standard_input
from treadle.bad_input import BadInput
from treadle.histories import OpenedHistory, open_history
from treadle.instance import Instance
from treadle.plain_text import one_line, plain
from treadle.rehearsed import rehearsal_lines
from treadle.run import say
from treadle.whole_log import connected, log_access, spool

SAME, DIFFERENT, NOT_VERIFIED = 0, 1, 3
POLICY_MAX_BYTES = 4 * 1024 * 1024


class Total(msgspec.Struct, kw_only=True):
    """What came of a whole log."""

    plans: int = 0
    events: int = 0
    checked: int = 0
    choices: int = 0
    unknown: int = 0
    differences: int = 0
    """Plans that are decided otherwise have one at least."""
    not_verified: int = 0
    """Plans whose events lack what they must have, or can't be read. Not those that are older than that."""

    def add(self, one: Verified) -> None:
        self.plans += 1
        self.events += one.events
        self.checked += one.checked
        self.choices += one.choices
        self.unknown += sum(u.count for u in one.unknown)
        self.differences += one.differences
        self.not_verified += any(not u.is_expected for u in one.unknown)

    @property
    def status(self) -> int:
        """The exit status."""
        if self.differences:
            return DIFFERENT
        return NOT_VERIFIED if self.not_verified or not self.checked else SAME


def verify_command(
    instance: Instance, plan_or_file: str | None, *, whole_log: bool, policy: Path | None, as_json: bool
) -> int:
    """What `treadle replay --verify` and `--policy` do.

    Returns the exit status: 0 the same, 1 a difference, 3 not verified.

    Raises `BadInput` (2), `SuiteError`, `ApiError`.
    """
    if whole_log:
        if plan_or_file is not None or policy is not None:
            raise BadInput("--all verifies every plan of the log: leave PLAN and --policy out")
        return verify_whole_log(instance, as_json=as_json)
    if plan_or_file == STANDARD_STREAM and policy is not None and str(policy) == STANDARD_STREAM:
        raise BadInput("standard input is one thing: the plan's file or the policy; name a file for the other")
    wish = read_policy(policy) if policy is not None else None
    with open_history(instance, plan_or_file) as history:
        if wish is not None:
            return _rehearse(history, wish, as_json=as_json)
        result = msgspec.structs.replace(verify(history.file), plan=history.asked)
    click.echo(_as_json(result) if as_json else "\n".join(verified_lines(result)))
    return _STATUSES[result.verdict]


_STATUSES = {"same": SAME, "different": DIFFERENT, "not verified": NOT_VERIFIED}


def _rehearse(history: OpenedHistory, policy: Policy, *, as_json: bool) -> int:
    try:
        result = msgspec.structs.replace(rehearse(history.file, policy), plan=history.asked)
    except BadPolicy as faults:
        raise BadInput(f"the policy does not fit the plan:\n{faults}") from faults
    click.echo(msgspec.json.encode(result) if as_json else "\n".join(rehearsal_lines(result)))
    return DIFFERENT if result.differs else SAME


def read_policy(path: Path) -> Policy:
    """Of a file; `-` is standard input. Raises `BadInput` with every fault."""
    is_input = str(path) == STANDARD_STREAM
    shown = "standard input" if is_input else one_line(str(path))
    try:
        with contextlib.nullcontext(standard_input()) if is_input else path.open("rb") as file:
            content = file.read(POLICY_MAX_BYTES + 1)
        if len(content) > POLICY_MAX_BYTES:
            raise BadInput(f"{shown} is larger than {POLICY_MAX_BYTES // 2**20} MiB, so it is no policy")
        return policy_of(parse_text(content))
    except OSError as error:
        raise BadInput(f"{shown} can't be read: {error.strerror}") from error
    except (PlanFaults, BadPolicy) as faults:
        raise BadInput(f"{shown} is not a valid policy:\n{faults}") from faults


# The whole log ----------------------------------------------------------------------------------------------------


def verify_whole_log(instance: Instance, *, as_json: bool) -> int:
    """Verifies every plan of the log, one after the other. Raises `BadInput`, `SuiteError`."""
    progress = _progress()
    total, first = Total(), None
    with tempfile.TemporaryDirectory(prefix="treadle-") as made:
        with log_access(instance) as settings:
            if settings.log_key is None:
                say("note: without the log's key (TREADLE_LOG_KEY_FILE) whatever is stored in the log is believed")

            async def read() -> list[Path]:
                async with connected(settings) as client:
                    return await spool(client, settings.log_key, Path(made), progress)

            files = asyncio.run(read())
        for number, path in enumerate(files, start=1):
            progress(f"verifying plan {number:,} of {len(files):,}")
            one = _verify_file(path)
            total.add(one)
            first = first or (one if one.differences else None)
            if as_json:
                click.echo(_as_json(one))
            elif one.differences or any(not u.is_expected for u in one.unknown):
                click.echo("\n".join(verified_lines(one, with_first=one is first)))
    progress("")
    click.echo(msgspec.json.encode(total) if as_json else _total_line(total))
    return total.status


def _verify_file(path: Path) -> Verified:
    try:
        with EventFile.open(path) as file:
            return verify(file)
    except HistoryDamaged as error:
        raise BadInput(f"the log of {path.stem} can't be read back from {path.parent}: {error}") from error
    finally:
        path.unlink()


def _progress() -> Callable[[str], None]:
    """One line that is written over, where a person looks on; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda _: None

    def show(words: str) -> None:
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()

    return show


def _as_json(result: Verified) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(result), "verdict": result.verdict})


# For people -------------------------------------------------------------------------------------------------------


def verified_lines(result: Verified, *, with_first: bool = True) -> list[str]:
    """What came of one plan."""
    not_made = sum(unknown.count for unknown in result.unknown)
    could_not = f", and {not_made:,} decisions could not be made again" if not_made else ""
    match result.verdict:
        case "different":
            said = f"{result.differences:,} decided otherwise{could_not}"
        case "not verified":
            said = f"not verified: no difference was found{could_not}"
        case "same":
            said = "all decided the same" if not not_made else f"verified in part: no difference was found{could_not}"
    lines = [f"plan {plain(result.plan)}: {said}"]
    lines.append(
        f"of {result.events:,} events {result.checked:,} decisions and {result.choices:,} choices of the dispatcher "
        "were made again"
    )
    for unknown in result.unknown:
        lines.append(f"unknown: {unknown.count:,}, from event {unknown.seq} on: {one_line(unknown.reason)}")
    if with_first and result.first is not None:
        lines += ["", *_difference_lines(result.first)]
    return lines


def _difference_lines(found: Difference) -> list[str]:
    what = "plan" if found.entity == "_plan" else found.entity
    lines = [f"the first difference is event {found.seq} ({plain(what)}, {plain(found.type)}):"]
    lines.append(f"  {one_line(found.message, 400)}")
    parts = (
        ("recorded", found.recorded),
        ("decided by this Treadle", found.decided or {"": "nothing"}),
        ("the command was", found.command),
        ("the state before", found.before),
    )
    for title, said in parts:
        if said:
            lines.append(f"  {title}: {one_line(said.get('', ''), 400)}")
            lines += [f"    {name}: {one_line(value, 400)}" for name, value in said.items() if name]
    return lines


def _total_line(total: Total) -> str:
    if total.differences:
        said = f"{total.differences:,} otherwise"
    else:
        said = "no difference was found" if total.status else "all the same" if not total.unknown else "the same"
    unknown = f"; {total.unknown:,} can't be decided again" if total.unknown else ""
    missing = f"; not verified: {total.not_verified:,} plans lack what they must have" if total.not_verified else ""
    nothing = "" if total.checked or total.not_verified else "; not verified: nothing could be decided again"
    return (
        f"{total.plans:,} plans, {total.events:,} events: {total.checked:,} decisions and {total.choices:,} choices "
        f"of the dispatcher decided again, {said}{unknown}{missing}{nothing}"
    )

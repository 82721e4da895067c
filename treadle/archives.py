"""`treadle export` and `treadle import`: a plan's history as a file, and such a file as a plan to be looked at."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
import msgspec

from shared.history.archive import Archive
from shared.history.archive_format import SUFFIX, Manifest
from shared.history.event_file import HistoryDamaged
from treadle.api import CONNECT_TIMEOUT_S, ApiError, Gateway, Resource, checked
from treadle.archive_files import PIECE_BYTES, STANDARD_STREAM, Target, readable
from treadle.bad_input import BadInput
from treadle.clean import size_words
from treadle.found import find_plan
from treadle.instance import Instance
from treadle.plain_text import one_line, plain
from treadle.plan_commands import json_option, plan_argument
from treadle.run import say

QUIET_MAX_S = 300.0
"""How long a gateway may say nothing: a runner reads the commits meanwhile, or it checks what it was sent."""
TOLD_EVERY_S = 0.5
DIGEST = re.compile("[0-9a-f]{64}")


@click.command(name="export")
@plan_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file; replaced if it is one [output].")
@click.option("--redact", is_flag=True, help="Replace names, texts, paths, commit ids; leave diffs and commits out.")
@click.option("--no-commits", is_flag=True, help="Leave the git bundle out.")
@json_option
@click.pass_obj
def export_command(
    instance: Instance, plan: str | None, output: Path | None, redact: bool, no_commits: bool, as_json: bool
) -> None:
    """Writes a plan's history to a file: events, results, diffs, transcripts and commits.

    PLAN is an id or the beginning of one; left out, it is the newest plan. `treadle import` takes the file, and the
    commands that look back take it as it is: `treadle replay FILE`. Its digest tells whoever gets it that it is the
    same file: give it to them by another way than the file.

    What --redact leaves: task codes, ids of plans, the shape of the plan, times, numbers and costs.
    """
    if as_json and (output is None or str(output) == STANDARD_STREAM):
        raise BadInput("--json wants a file to export to: name it by -o FILE")
    target = Target(output)
    if as_json and target.output is None:
        raise BadInput(f"--json wants a file of its own to export to: {one_line(str(output))} is standard output")
    params = {"redact": "1"} if redact else {}
    if no_commits:
        params["commits"] = "0"
    with _new_file(target.directory) as path:
        with instance.reach() as reached:
            gateway = reached.gateway()
            _download(gateway, find_plan(gateway, plan)["plan"], path, params)
        with _checked(path) as archive:
            manifest, digest = archive.manifest, archive.digest
        size_bytes = path.stat().st_size
        target.deliver(path)
    if as_json:
        told = {"file": str(output), "plan": manifest.plan, "digest": digest, "size_bytes": size_bytes}
        more = {name: getattr(manifest, name) for name in ("counts", "redacted", "last_seq", "commits", "left_out")}
        click.echo(msgspec.json.encode(told | more).decode())
    else:
        _tell(manifest, digest, size_bytes, target.output)


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--digest", help="What the exporter was told: no other file is taken.")
@json_option
@click.pass_obj
def import_command(instance: Instance, file: Path, digest: str | None, as_json: bool) -> None:
    """Makes a read-only plan of a file that `treadle export` wrote: it can be looked at, and nothing of it runs.

    FILE is checked before anything of it is taken; - is standard input. Without --digest that tells damage, and no
    more: whoever can change a file can make it fit again.
    """
    if digest is not None and not DIGEST.fullmatch(digest.lower()):
        raise BadInput("--digest wants the 64 hex digits that `treadle export` told")
    with readable(file) as path:
        with _checked(path) as archive:
            manifest, found = archive.manifest, archive.digest
        if digest is not None and found != digest.lower():
            raise BadInput(
                f"{one_line(path.name)} is whole, but another file than the one with that digest: its own is {found}"
            )
        with instance.reach() as reached:
            view = _upload(reached.gateway(), path, found)
    if as_json:
        click.echo(msgspec.json.encode(view).decode())
        return
    name = f" “{one_line(view['name'], 200)}”" if view["name"] else ""
    say(f"plan {view['id']}{name}: {_contents(manifest)}; it was {manifest.plan} where it ran")
    say(f"digest: {found}")
    say(f"look at it: treadle replay {view['id']}")


def _tell(manifest: Manifest, digest: str, size_bytes: int, output: Path | None) -> None:
    where = f" → {one_line(str(output))}" if output is not None else ""
    say(f"plan {manifest.plan}: {_contents(manifest)}{where} ({size_words(size_bytes)})")
    for left_out in manifest.left_out:
        say(f"left out: {one_line(left_out, 500)}")
    say(f"digest: {digest}")


def _contents(manifest: Manifest) -> str:
    counts = msgspec.structs.asdict(manifest.counts)
    parts = [f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items() if count]
    if manifest.commits is not None:
        base = manifest.commits.base[:12]
        parts.append("commits with all history" if manifest.commits.complete else f"commits since {base}")
        if left := manifest.commits.unfinished:
            parts.append(f"unfinished work of {len(left)} attempt{'s' if len(left) != 1 else ''}")
    return ("redacted, " if manifest.redacted else "") + ", ".join(parts)


@contextlib.contextmanager
def _new_file(directory: Path) -> Iterator[Path]:
    """A place for a file that nobody else reads; what is there in the end is removed. Raises `BadInput`."""
    try:
        made = tempfile.mkdtemp(prefix=".treadle-", dir=directory)
    except OSError as error:
        raise BadInput(f"nothing can be written to {one_line(str(directory))}: {error.strerror}") from error
    try:
        yield Path(made) / f"plan{SUFFIX}"
    except BrokenPipeError:  # whoever reads our output has gone
        raise
    except OSError as error:
        raise BadInput(f"the file can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _checked(path: Path) -> Archive:
    """Raises `BadInput`."""
    try:
        return Archive.open(path)
    except HistoryDamaged as error:
        raise BadInput(plain(str(error))) from error
    except OSError as error:
        raise BadInput(f"{one_line(str(path))} can't be read: {error.strerror}") from error


class _Progress:
    """Tells a person at a terminal how far it is; a log file gets nothing of it."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._shown = sys.stderr.isatty()
        self._told_s = time.monotonic()
        self._bytes = 0

    def more(self, count: int) -> None:
        self._bytes += count
        if self._shown and time.monotonic() - self._told_s >= TOLD_EVERY_S:
            self._told_s = time.monotonic()
            sys.stderr.write(f"\r{self._doing}: {size_words(self._bytes)}\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _download(gateway: Gateway, plan: str, path: Path, params: dict[str, str]) -> None:
    """Raises `ApiError` and httpx's errors."""
    progress = _Progress(f"exporting {plan}")
    timeout = httpx.Timeout(QUIET_MAX_S, connect=CONNECT_TIMEOUT_S)
    try:
        with (
            gateway.http.stream("GET", f"/plans/{plan}/export", params=params, timeout=timeout) as answer,
            path.open("xb") as file,
        ):
            os.fchmod(file.fileno(), 0o600)
            for piece in checked(answer).iter_bytes():
                file.write(piece)
                progress.more(len(piece))
    except httpx.RemoteProtocolError as error:
        why = "the gateway broke off before the file's end: its log says why; then export again"
        raise ApiError(502, "export_broken_off", why) from error
    finally:
        progress.end()


def _upload(gateway: Gateway, path: Path, digest: str) -> Resource:
    """Raises `ApiError`, httpx's errors and `BadInput`."""
    progress = _Progress("importing")

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                progress.more(len(piece))
                yield piece

    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
    timeout = httpx.Timeout(QUIET_MAX_S, connect=CONNECT_TIMEOUT_S)
    try:
        answer = gateway.http.post(
            f"/plans/import-log?digest={quote(digest)}", content=pieces(), headers=headers, timeout=timeout
        )
    finally:
        progress.end()
    view: dict[str, Any] = msgspec.json.decode(checked(answer).content)
    return view


archive_commands: tuple[click.Command, ...] = (export_command, import_command)

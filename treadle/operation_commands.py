"""Subcommands for whoever runs Treadle: runners, the credentials' keys, the projection."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import quote

import click
import msgspec

from treadle.api import ApiError, Gateway, Resource
from treadle.bad_input import BadInput
from treadle.instance import Instance
from treadle.plain_text import one_line
from treadle.run import ATTENTION, say
from treadle.supervision.data_dir import told_to_people
from treadle.supervision.keyring_file import add_key

LOOK_EVERY_S = 0.3
LINE_EVERY_S = 5.0
GIVEN_UP_AFTER_S = 5.0
"""A rebuild that is not to be seen for so long has failed: its first moments don't show it either."""

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")


@click.command()
@json_option
@click.pass_obj
def runners(instance: Instance, as_json: bool) -> None:
    """Lists the runners that are there, and what they have to do."""
    _list(instance, "/runners", "no runner is there", _runner_line, as_json=as_json)


@click.group()
def keys() -> None:
    """The keys that stored credentials are encrypted with."""


@keys.command()
@click.pass_obj
def rotate(instance: Instance) -> None:
    """Makes a new key, and encrypts all stored credentials anew with it.

    The key that was used until now stays in the keyring until the next rotation; older ones that nothing is encrypted
    with any more go.
    """
    data_dir = instance.own("keys rotate")
    with instance.reach() as reached, told_to_people(data_dir.path):
        gateway = reached.gateway()
        known = gateway.get("/keys", Resource)["keys"]
        made = add_key(data_dir.keyring, {key["id"] for key in known if not key["credentials"]})
        done = gateway.post("/keys/reencrypt")
    say(f"key {made} is the current one: {done['reencrypted']} credentials were encrypted anew")
    for stays in done["unreadable"]:
        say(f"the {stays['kind']} credential of {stays['holder_id']} can't be opened: {stays['reason']}")
    if done["unreadable"] or done["current_key"] != made:
        sys.exit(ATTENTION)


@click.group()
def projection() -> None:
    """The tables that lists of plans and tasks are read from."""


@projection.command()
@click.pass_obj
def rebuild(instance: Instance) -> None:
    """Makes the tables anew from the event log; until that is done the old ones answer."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        before = gateway.get("/projection", Resource)
        try:
            gateway.post("/projection/rebuild")
        except ApiError as error:
            if error.code != "rebuilding":
                raise
            say("a rebuild is at work already")
        _follow_rebuild(gateway, before["generation"])


@projection.command(name="show")
@json_option
@click.pass_obj
def show_projection(instance: Instance, as_json: bool) -> None:
    """Shows how far the tables are, and a rebuild of them."""
    with instance.reach() as reached:
        stands = reached.gateway().get("/projection", Resource)
    if as_json:
        click.echo(msgspec.json.encode(stands).decode())
        return
    click.echo(
        f"generation {stands['generation']}: {stands['position']} of {stands['log_end']} events are in the tables"
    )
    if rebuilding := stands["rebuilding"]:
        click.echo(f"they are made anew: {rebuilding['position']} of {stands['log_end']} events")


@projection.command()
@click.option("--replace", is_flag=True, help="Read the rows that were made anew, where any differ.")
@json_option
@click.pass_obj
def verify(instance: Instance, replace: bool, as_json: bool) -> None:
    """Makes the tables anew beside the present ones, and compares all rows at one position of the event log.

    Exit status: 0 they agree, 1 they differ.
    """
    with instance.reach() as reached:
        gateway, progress = reached.gateway(), _Progress()
        found = gateway.post("/projection/verify", {"replace": replace})
        while found["state"] == "at work":
            progress.show(found["position"], gateway.get("/projection", Resource)["log_end"])
            time.sleep(LOOK_EVERY_S)
            found = gateway.get("/projection/verify", Resource)
        progress.end()
    if found["state"] not in ("agrees", "differs"):
        raise ApiError(500, "verify_failed", f"the comparison did not come to its end: {found['message']}")
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for line in verification_lines(found):
            click.echo(line)
    if found["state"] == "differs":
        sys.exit(ATTENTION)


def verification_lines(found: Resource) -> list[str]:
    """What came of comparing the tables with the log, for people."""
    compared = f"{found['rows']} rows at event {found['position']}"
    if found["state"] == "agrees":
        return [f"the tables are what the log says: {compared}"]
    lines = []
    for one in found["first"]:
        where = one_line(f"{one['plan']}/{one['task']}" if one["task"] else one["plan"], 90)
        field = one_line(one["field"], 60) or "the row"
        lines.append(f"{where}  {field}: is {one_line(one['stored'])}, the log says {one_line(one['right'])}")
    if (more := found["differences"] - len(lines)) > 0:
        lines.append(f"… and {more} more")
    then = "the new rows are read now" if found["replaced"] else "`treadle projection rebuild` puts that right"
    return [*lines, f"{found['differences']} differences in {compared}; {then}"]


def _follow_rebuild(gateway: Gateway, former_generation: int) -> None:
    """Shows how far the rebuild is until its tables are the ones that are read. Raises `ApiError` where it failed."""
    progress, idle_since_s = _Progress(), time.monotonic()
    while True:
        stands = gateway.get("/projection", Resource)
        if stands["generation"] != former_generation:
            progress.end()
            say(f"rebuilt: {stands['position']} of {stands['log_end']} events are in the new tables")
            return
        if stands["rebuilding"]:
            idle_since_s = time.monotonic()
            progress.show(stands["rebuilding"]["position"], stands["log_end"])
        elif time.monotonic() - idle_since_s > GIVEN_UP_AFTER_S:
            progress.end()
            raise ApiError(
                500, "rebuild_failed", "the rebuild has ended and changed nothing: the gateway's log tells why"
            )
        time.sleep(LOOK_EVERY_S)


class _Progress:
    """A line that is drawn over on a terminal; elsewhere a new line now and then."""

    def __init__(self) -> None:
        self._drawn_over = sys.stderr.isatty()
        self._shown_s = -LINE_EVERY_S

    def show(self, done: int, of: int) -> None:
        text = f"{done} of {of} events ({100 * done // max(of, 1)} %)"
        if self._drawn_over:
            sys.stderr.write(f"\x1b[2K\r{text}")
            sys.stderr.flush()
        elif time.monotonic() - self._shown_s >= LINE_EVERY_S:
            self._shown_s = time.monotonic()
            say(text)

    def end(self) -> None:
        if self._drawn_over:
            say("")


def _list(instance: Instance, path: str, if_none: str, line: Callable[[Resource], str], *, as_json: bool) -> None:
    with instance.reach() as reached:
        found = list(reached.gateway().pages(path))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    elif not found:
        say(if_none)
    for one in [] if as_json else found:
        click.echo(line(one))


def _runner_line(runner: Resource) -> str:
    leases = ", ".join(f"{lease['plan']}/{lease['task']}" for lease in runner["leases"])
    pools = ", ".join(runner["pools"])
    at_work = f": {leases}" if leases else ""
    about = f"{pools}; sandbox: {runner.get('sandbox') or 'unknown'}"
    full = f"; takes no new work: {runner['full']}" if runner.get("full") else ""
    return one_line(f"{runner['runner']}  {runner['busy']} of {runner['slots']} slots busy  ({about}){at_work}{full}")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def consumers(ctx: click.Context, as_json: bool) -> None:
    """Lists who reads the event log, and how far they are. For admins."""
    if ctx.invoked_subcommand is not None:
        return
    instance: Instance = ctx.obj
    with instance.reach() as reached:
        found = reached.gateway().get("/consumers", Resource)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(f"the log ends at event {found['log_end']}; the projection has event {found['projection_position']}")
    for one in found["items"]:
        click.echo(consumer_line(one))


def consumer_line(one: Resource) -> str:
    """A reader of the log, for people."""
    words = f"{one['name']}  {one['kind']} {one['of']}: at event {one['position']}, {one['pending']} to come"
    if one["kind"] == "pool":
        words += f", {one['unacknowledged']} in runners' hands, {one['redelivered']} delivered again"
    if one["last_active"]:
        words += f"; last active {datetime.fromisoformat(one['last_active']).astimezone():%Y-%m-%d %H:%M:%S}"
    return one_line(words, 300)


@consumers.command(name="reset")
@click.argument("name")
@click.option("--to", required=True, metavar="SEQ|TIME|start|end", help="The first event that it delivers then.")
@click.option("--reason", required=True, help="Why; kept in the audit log.")
@click.option("--yes", is_flag=True, help="Also where what was not taken yet is passed over.")
@click.pass_obj
def reset_consumer(instance: Instance, name: str, to: str, reason: str, yes: bool) -> None:
    """Lets the pool's consumer NAME begin at another place of the log. For admins.

    Back: what was dispatched from there on is delivered again, and nothing runs twice. Forward (with --yes): what was
    dispatched before and not taken stays in the queue, and nobody takes it.
    """
    where = _place(to)
    with instance.reach() as reached:
        gateway = reached.gateway()
        if not yes:
            known = {one["name"]: one for one in gateway.get("/consumers", Resource)["items"]}
            if lost := _passed_over(known.get(name), where):
                raise BadInput(f"{lost}. Say --yes if that is meant")
        done = gateway.post(f"/consumers/{quote(name, safe='')}/reset", {"to": where, "reason": reason})
    say(f"{done['name']} begins at event {done['seq']} now: {done['consequence']}")


def _place(to: str) -> str:
    """A time without a zone is this machine's, as the times that are shown are. Raises `BadInput`."""
    if to in ("start", "end") or (to.isascii() and to.isdecimal()):
        return to
    try:
        return datetime.fromisoformat(to).astimezone().isoformat()
    except (ValueError, OverflowError, OSError):
        raise BadInput(
            f"--to {one_line(to, 40)}: give start, end, a sequence such as 1200, or a time such as 2026-01-31T12:00"
        ) from None


def _passed_over(consumer: Resource | None, to: str) -> str:
    """What a reset would pass over, in words; empty where it is nothing, or the gateway refuses it anyway."""
    if consumer is None or consumer["kind"] != "pool":
        return ""
    at, pending, taken = consumer["position"], consumer["pending"], consumer["unacknowledged"]
    if to == "start" or (to.isdecimal() and int(to) <= at) or not pending + taken:
        return ""
    lost = []
    if pending:
        lost.append(
            f"of the {pending} dispatches that are to come what lies before {to} would be passed over, and its "
            "tasks would stay in the queue"
        )
    if taken:
        lost.append(f"nobody would take over the {taken} that runners have in their hands if one of them dies")
    return f"{consumer['name']} is at event {at}: {'; '.join(lost)}"


operation_commands: tuple[click.Command, ...] = (runners, keys, projection, consumers)

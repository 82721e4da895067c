"""Where archives are written to and read from: nothing but a plain file is ever replaced."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.history.archive import Archive
from tests.command.test_archives import (
    NOWHERE,
    as_user,
    command,
    drafted,
    file,
    gateway,
    gateway_on_sqlite,
    make_database,
    make_migrated_database,
    planner,
)
from tests.gateway.gateway_process import GatewayProcess
from tests.shared.history.archives import whole
from treadle.archive_files import Target
from treadle.bad_input import BadInput

__all__ = ["file", "gateway", "gateway_on_sqlite", "make_database", "make_migrated_database", "planner"]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What an export has made."""
    path = tmp_path / "made"
    path.write_bytes(b"an archive")
    return path


@pytest.fixture
def terminal() -> Iterator[Path]:
    ours, theirs = pty.openpty()
    yield Path(os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)


def test_a_file_is_replaced_and_a_new_one_made(made: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / "old").write_text("something longer than what comes")
        again = tmp_path / "again"
        again.write_bytes(made.read_bytes())
        Target(tmp_path / name).deliver(again)
        assert (tmp_path / name).read_bytes() == b"an archive" and not again.exists()


def test_a_fifo_stays_one_and_its_reader_gets_the_archive(made: Path, tmp_path: Path) -> None:
    fifo, got = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    Target(fifo).deliver(made)
    reader.join(timeout=30)
    assert got == [b"an archive"] and stat.S_ISFIFO(fifo.lstat().st_mode)


def test_a_reader_who_leaves_is_told_of(made: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    made.write_bytes(bytes(1_000_000))
    reader = threading.Thread(target=lambda: os.close(os.open(fifo, os.O_RDONLY)))
    reader.start()
    with pytest.raises(BadInput, match="left before the export's end"):
        Target(fifo).deliver(made)
    reader.join(timeout=30)


def test_of_a_link_the_file_behind_it_is_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    behind, link = tmp_path / "elsewhere" / "plan.treadle", tmp_path / "link"
    link.symlink_to(Path("elsewhere") / "plan.treadle")
    for _ in ("a link to nothing", "a link to a file"):
        again = tmp_path / "again"
        again.write_bytes(made.read_bytes())
        target = Target(link)
        assert target.directory == behind.parent  # on the same disk
        target.deliver(again)
        assert link.is_symlink() and behind.read_bytes() == b"an archive"
        behind.write_text("older")


def test_a_terminal_gets_no_binary_and_stays_a_device(made: Path, tmp_path: Path, terminal: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(terminal)
    with pytest.raises(BadInput, match="no text for a terminal"):
        Target(link).deliver(made)
    assert link.is_symlink() and stat.S_ISCHR(terminal.lstat().st_mode)


def test_a_directory_and_a_way_that_leads_nowhere_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{tmp_path} is a directory: name a file in it, such as {tmp_path}/plan"):
        Target(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadInput, match=r"nothing can be written to .*loop: Too many levels"):
        Target(tmp_path / "loop")
    assert f"{tmp_path} is a directory" in command("export", "-o", str(tmp_path), env=NOWHERE).stderr


async def test_standard_output_by_its_path_is_written_to_and_not_replaced(
    gateway: GatewayProcess, planner: None, tmp_path: Path
) -> None:
    plan = await drafted(gateway, "erna")
    out, environment = tmp_path / "out", {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    # A link of our own to what /dev/stdout leads to: a mistake here must replace no link of this machine.
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")

    def export() -> subprocess.CompletedProcess[bytes]:
        with out.open("ab") as into:
            into.write(b"before ")
            into.flush()
            return subprocess.run(
                [sys.executable, "-m", "treadle", "export", plan, "-o", str(link)],
                stdout=into, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, check=False,
                env=environment | as_user(gateway, "erna"),
            )  # fmt: skip

    ended = await asyncio.to_thread(export)
    assert ended.returncode == 0, ended.stderr
    assert link.is_symlink() and out.read_bytes().startswith(b"before PK\3\4")


def treadle(*words: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
    """The command with a pipe for standard input."""
    return subprocess.run(
        [sys.executable, "-m", "treadle", *words],
        input=given, capture_output=True, cwd=ROOT, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], **NOWHERE},
    )  # fmt: skip


def test_a_history_comes_through_a_pipe_too(file: Path) -> None:
    for named in ("-", "/dev/stdin"):
        ended = treadle("replay", named, "--verify", given=file.read_bytes())
        assert (ended.returncode, b"of 3 events" in ended.stdout) == (3, True), ended.stderr  # it has no commands
        torn = treadle("import", named, given=file.read_bytes()[:-30])
        assert (torn.returncode, b"standard input: the file's end is missing" in torn.stderr) == (2, True)
        whole_one = treadle("import", named, given=file.read_bytes())
        assert (whole_one.returncode, b"does not answer" in whole_one.stderr) == (1, True)


def test_a_policy_comes_through_a_pipe_too(file: Path) -> None:
    ended = treadle("replay", str(file), "--policy", "-", given=b"nonsense: 1\n")
    assert (ended.returncode, b"standard input is not a valid policy" in ended.stderr) == (2, True)
    both = treadle("replay", "-", "--policy", "-", given=file.read_bytes())
    assert (both.returncode, b"name a file for the other" in both.stderr) == (2, True)


def test_a_closed_standard_input_is_told_of() -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m treadle import - <&-'],
        capture_output=True, cwd=ROOT, timeout=60, check=False, env={"PATH": os.environ["PATH"], **NOWHERE},
    )  # fmt: skip
    assert (ended.returncode, b"nothing is at standard input" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "it is empty"), (b"plan: none\n" * 9, "it is no archive of Treadle's, nor any other zip file")],
)
def test_what_is_no_archive_is_called_so(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    done = command("import", str(path), env=NOWHERE)
    assert done.exit_code == 2 and f"notes.txt: {told}" in done.stderr


def test_what_stands_before_an_archive_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "mail.treadle"
    path.write_bytes(b"Content-Type: x\r\n\r\n" + whole(tmp_path)[0])
    assert "which begins at byte 19: remove it" in command("import", str(path), env=NOWHERE).stderr


async def test_an_imported_plan_is_looked_at_by_its_own_id_and_removed(
    gateway: GatewayProcess, planner: None, tmp_path: Path
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        done = command(*words, env=as_user(gateway, "frieda"))
        return done.exit_code, done.stdout, done.stderr

    plan, out = await drafted(gateway, "frieda"), tmp_path / "plan.treadle"
    assert (await asyncio.to_thread(run, "export", plan, "-o", str(out)))[0] == 0
    with Archive.open(out) as archive:
        assert archive.plan == plan
    id_ = json.loads((await asyncio.to_thread(run, "import", str(out), "--json"))[1])["id"]

    status, told, _ = await asyncio.to_thread(run, "replay", id_, "--verify")
    assert status == 0 and told.startswith(f"plan {id_}: ")
    assert f"plan {id_} " in (await asyncio.to_thread(run, "replay", id_))[1]
    status, told, said = await asyncio.to_thread(run, "events", id_, "-f")
    assert status == 0 and " drafted " in told and "nothing happens to it any more" in said
    status, _, said = await asyncio.to_thread(run, "watch", id_)
    assert status == 2 and f"`treadle events {id_}`" in said and "/api/" not in said

    assert id_ in (await asyncio.to_thread(run, "imported"))[1]
    status, _, said = await asyncio.to_thread(run, "imported", "remove", plan)
    assert status == 2 and "was not imported" in said
    assert (await asyncio.to_thread(run, "imported", "remove", id_[:6]))[0] == 0
    assert (await asyncio.to_thread(run, "status", id_))[0] == 2
    assert (await asyncio.to_thread(run, "status", plan))[0] == 0

"""Overhead: eight scripted Claude tasks, two at a time, through Treadle and through a bare loop over the same CLI."""

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import claude_agent_sdk
import msgspec
import psutil

from bench.figures import Figure, Goal, Series, ratio
from shared.spec import DEFAULT_MODEL
from treadle.supervision.log_files import open_log
from treadle.supervision.processes import die_with_parent

AT_ONCE = 2
TURN_S = 1.0
"""How long the scripted model takes for each of a task's five answers: quick for a real one."""
USUAL = [f"T{i}" for i in range(1, 9)]
INSTANT = [f"Q{i}" for i in range(1, 9)]
"""The same tasks with a model that needs no time: they are over in a second, so this shows Treadle's own time best."""
GOAL = 1.15
"""At most so many times the bare loop's wall time."""
KEY = "sk-bench-made-up"
START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 600.0
BARE_TASK = Path(__file__).with_name("bare_task.sh")


class Overhead:
    """A repository, a scripted model, a suite that is up, and the two ways to have the tasks done."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._repo = directory / "repository"
        self._prompts = directory / "prompts"
        self._loops = 0
        self._treadle = [str(Path(sys.executable).parent / "treadle"), "--data", str(directory / "data")]
        self._environment = {
            **{name: os.environ[name] for name in ("PATH",) if name in os.environ},
            "LANG": "C.UTF-8",
            "HOME": str(directory / "home"),
            "ANTHROPIC_API_KEY": KEY,
        }

    async def prepare(self, stack: AsyncExitStack) -> None:
        """Writes the inputs, and starts the model and the suite for as long as `stack` lasts."""
        self._prompts.mkdir()
        (self._directory / "home").mkdir()
        for code in (*USUAL, *INSTANT):
            (self._prompts / code).write_text(_prompt(code))
        git = ("git", "-C", str(self._repo))
        identity = ("-c", "user.name=Bench", "-c", "user.email=bench@localhost")
        await self._done("git", "init", "--quiet", "--initial-branch=main", str(self._repo))
        await self._done(*git, *identity, "commit", "--quiet", "--allow-empty", "--message", "Begin")
        await self._start_model(stack)
        await self._start_suite(stack)

    async def through_treadle(self, codes: Sequence[str]) -> float:
        """Seconds that `treadle run` takes, beside a suite that is up."""
        plan = self._directory / "plan.json"
        plan.write_bytes(msgspec.json.encode(_plan(codes)))
        seconds = await self._timed(*self._treadle, "run", str(plan), "--repo", str(self._repo), "--json")
        newest = ("for-each-ref", "--sort=-committerdate", "--count=1", "--format=%(refname)", "refs/heads/treadle")
        branch = (await self._done("git", "-C", str(self._repo), *newest)).strip()
        files = await self._done("git", "-C", str(self._repo), "ls-tree", "--name-only", branch)
        _check(files.split() == [f"{code}.txt" for code in codes], f"{branch} does not hold everybody's work: {files}")
        return seconds

    async def through_bare_loop(self, codes: Sequence[str]) -> float:
        """Seconds that `xargs` takes; each task leaves a commit on a branch of its own."""
        self._loops += 1
        number = str(self._loops)
        self._environment |= {
            "BENCH_REPO": str(self._repo),
            "BENCH_WORK": str(self._directory / f"bare-{number}"),
            "BENCH_ROUND": number,
            "BENCH_PROMPTS": str(self._prompts),
            "BENCH_MODEL": DEFAULT_MODEL,
            "BENCH_CLAUDE": str(Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"),
        }
        arguments = "".join(f"{code}\n" for code in codes).encode()
        seconds = await self._timed("xargs", f"-P{AT_ONCE}", "-n1", str(BARE_TASK), given=arguments)
        for code in codes:
            branch = f"bare/{number}/{code}"
            files = await self._done("git", "-C", str(self._repo), "ls-tree", "--name-only", branch)
            _check(files.split() == [f"{code}.txt"], f"{branch} does not hold the task's work: {files}")
        return seconds

    def runner(self) -> psutil.Process:
        """The suite's only runner."""
        supervisor = json.loads((self._directory / "data" / "suite.json").read_bytes())["pid"]
        children = psutil.Process(supervisor).children()
        return next(child for child in children if "services.runner" in child.cmdline())

    async def _start_model(self, stack: AsyncExitStack) -> None:
        port_file, scripts = self._directory / "model.port", self._directory / "scripts.json"
        turns_s = {**dict.fromkeys(USUAL, TURN_S), **dict.fromkeys(INSTANT, 0.0)}
        scripts.write_text(json.dumps({code: _script(code, turn_s) for code, turn_s in turns_s.items()}))
        options = ("--port-file", str(port_file), "--scripts", str(scripts))
        await self._start(stack, "model", sys.executable, "-m", "treadle.scripted_model", *options)
        async with asyncio.timeout(START_TIMEOUT_S):
            while not port_file.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
        self._environment["ANTHROPIC_BASE_URL"] = f"http://127.0.0.1:{int(port_file.read_text())}"

    async def _start_suite(self, stack: AsyncExitStack) -> None:
        await self._start(stack, "suite", *self._treadle, "up", "--slots", str(AT_ONCE))
        async with asyncio.timeout(START_TIMEOUT_S):
            while "ready:" not in (self._directory / "suite.log").read_text():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)

    async def _start(self, stack: AsyncExitStack, name: str, *argv: str) -> None:
        with open_log(self._directory / f"{name}.log") as log:
            process = await asyncio.create_subprocess_exec(
                *argv, env=self._environment, stdin=DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent()
            )

        async def end() -> None:
            process.terminate()
            await process.wait()

        stack.push_async_callback(end)

    async def _timed(self, *argv: str, given: bytes = b"") -> float:
        started = time.perf_counter()
        await self._done(*argv, given=given)
        return time.perf_counter() - started

    async def _done(self, *argv: str, given: bytes = b"") -> str:
        """Standard output of a program that must succeed."""
        process = await asyncio.create_subprocess_exec(
            *argv, env=self._environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, preexec_fn=die_with_parent()
        )
        async with asyncio.timeout(RUN_TIMEOUT_S):
            out, err = await process.communicate(given)
        _check(process.returncode == 0, f"{' '.join(argv)} ended with {process.returncode}:\n{err.decode()[-2000:]}")
        return out.decode()


async def measure(directory: Path, rounds: int, goal: float = GOAL) -> Figure:
    """Runs both in turn, `rounds` times with either model, after one warm-up of each."""
    async with AsyncExitStack() as stack:
        overhead = Overhead(directory)
        await overhead.prepare(stack)
        await overhead.through_bare_loop(INSTANT)
        await overhead.through_treadle(INSTANT)
        usual = await _in_turn(overhead, USUAL, rounds, f"{TURN_S:g} s per answer")
        instant = await _in_turn(overhead, INSTANT, rounds, "instant answers")
    return Figure(
        f"Overhead, {len(USUAL)} scripted Claude tasks of five answers, {AT_ONCE} at a time",
        [*usual, *instant],
        [
            Goal("Treadle's wall time / the bare loop's", ratio(*usual).value, "×", at_most=goal),
            Goal("  the same with instant answers (no goal)", ratio(*instant).value, "×"),
        ],
    )


async def _in_turn(overhead: Overhead, codes: Sequence[str], rounds: int, words: str) -> tuple[Series, Series]:
    treadle: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):
        bare.append(await overhead.through_bare_loop(codes))
        treadle.append(await overhead.through_treadle(codes))
    ours = Series(f"{words}: `treadle run`, suite up", "s", treadle)
    return ours, Series(f"{words}: bare loop, xargs -P{AT_ONCE}", "s", bare)


def _plan(codes: Sequence[str]) -> object:
    tasks = [
        {"code": code, "name": f"Write {code}.txt", "assignee": "coder", "description": _words(code)} for code in codes
    ]
    return {"name": "Overhead", "agents": {"coder": {"sdk_type": "claude", "model": DEFAULT_MODEL}}, "tasks": tasks}


def _prompt(code: str) -> str:
    return f"# Task {code}: Write {code}.txt\n\n{_words(code)}\n"


def _words(code: str) -> str:
    return f"Write the file {code}.txt, and look at what is in it."


def _script(code: str, turn_s: float) -> object:
    """What the model says: it looks around, writes a file, changes it, looks at it, and ends."""
    name = f"{code}.txt"
    turns = [
        [{"text": "I look around."}, {"tool": "Bash", "input": {"command": "ls"}}],
        [{"text": "I write it."}, {"tool": "Write", "input": {"file_path": name, "content": f"{code}\n" * 20}}],
        [{"text": "I change it."}, {"tool": "Bash", "input": {"command": f"echo the end >> {name}"}}],
        [{"text": "I look at it."}, {"tool": "Bash", "input": {"command": f"cat {name}"}}],
        [{"text": "It is there."}],
    ]
    return [{"delay_s": turn_s, "blocks": blocks} for blocks in turns]


def _check(holds: bool, words: str) -> None:
    if not holds:
        raise RuntimeError(words)

"""One machine's suite: nats-server, planner, dispatcher, gateway and runners, supervised in one data directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from shared.bus import DISPATCHER, GATEWAY, PLANNER, RUNNER, SERVICES
from treadle.supervision.data_dir import DataDir, told_to_people
from treadle.supervision.database import is_migrated
from treadle.supervision.environment import Secrets, runner_environment, service_environment
from treadle.supervision.nats_server import NatsAccess, NatsServer, given_server, wait_until_ready, why_it_ended
from treadle.supervision.ports import LOOPBACK, ReservedPort
from treadle.supervision.private_files import make_private_dir
from treadle.supervision.processes import end_leftovers
from treadle.supervision.store_watch import watch_store
from treadle.supervision.suite_error import SuiteError
from treadle.supervision.suite_info import SuiteInfo, SuiteOptions, http_settings
from treadle.supervision.supervisor import Child, Supervisor

_NATS = "nats-server"
_READY_WITHIN_S = 60.0
_GIVEN_NATS_WITHIN_S = 5.0
_RUNNER_STOPS_WITHIN_S = 15.0
_LEFTOVERS_STOP_WITHIN_S = 3.0
_ASK_AGAIN_S = 0.05
_LOOKS_PER_IDLE_TIME = 5


def run_supervisor(
    options: SuiteOptions, secrets: Secrets, *, say: Callable[[str], None], on_ready: Callable[[SuiteInfo], None]
) -> None:
    """Runs the suite until SIGTERM, SIGINT, SIGHUP or idleness; a second SIGINT kills what has not stopped.

    To be called on the main thread. `say` hears what happens, a line at a time; `on_ready` is called once the gateway
    answers. Raises SuiteError when the suite can't run (DataDirHeld when another one does).
    """
    data_dir = DataDir(Path(options.data_dir))
    data_dir.prepare()
    with told_to_people(data_dir.path), contextlib.ExitStack() as held:
        held.enter_context(data_dir.hold())
        data_dir.suite_file.unlink(missing_ok=True)
        data_dir.check_space()
        end_leftovers(data_dir.children_file, _LEFTOVERS_STOP_WITHIN_S)
        asyncio.run(_Suite(options, secrets, data_dir, held, say).run(on_ready))


class _Suite:
    def __init__(
        self,
        options: SuiteOptions,
        secrets: Secrets,
        data_dir: DataDir,
        held: contextlib.ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._secrets = secrets
        self._dir = data_dir
        self._held = held
        self._say = say
        self._supervisor: Supervisor  # these two are set by `run`
        self._running: asyncio.Task[None]
        self._told_to_stop = False
        self._port = ReservedPort(options.gateway_port)
        held.callback(self._port.release)
        data_dir.make_secrets()
        self._url = f"http://{LOOPBACK}:{self._port.number}"

    async def run(self, on_ready: Callable[[SuiteInfo], None]) -> None:
        supervisor = self._supervisor = Supervisor(self._dir.children_file, self._say)
        self._running = asyncio.create_task(self._work(supervisor, on_ready))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        try:
            await supervisor.during(self._running)
        except asyncio.CancelledError:
            if not self._told_to_stop:
                raise
        finally:
            try:
                self._dir.suite_file.unlink(missing_ok=True)
            finally:
                await supervisor.stop()

    def _stop(self, number: signal.Signals | None = None) -> None:
        if self._told_to_stop and number == signal.SIGINT:
            self._supervisor.hurry()
        self._told_to_stop = True
        self._running.cancel()

    async def _work(self, supervisor: Supervisor, on_ready: Callable[[SuiteInfo], None]) -> None:
        # It takes long, so it begins first; nothing but the gateway waits for it.
        migration = asyncio.create_task(self._migrate(supervisor))
        nats = await self._nats(supervisor)
        services = [self._service(name, self._service_env(nats[name])) for name in (PLANNER, DISPATCHER)]
        supervisor.start(services)
        await migration
        supervisor.start([self._gateway(nats[GATEWAY])])
        supervisor.start([self._runner(number, nats[RUNNER]) for number in range(1, self._options.runners + 1)])
        async with httpx.AsyncClient(**http_settings(self._url, self._dir)) as http:
            await self._gateway_answers(http, supervisor)
            supervisor.settled()
            info = self._info(nats[GATEWAY])
            info.store(self._dir)
            on_ready(info)
            async with asyncio.TaskGroup() as watches:
                if self._options.nats_url is None:
                    watch = watch_store(self._dir, self._dir.log(_NATS), lambda: supervisor.restart(_NATS), self._say)
                    watches.create_task(watch)
                if self._options.idle_after_s is not None:
                    watches.create_task(self._stop_when_idle(http, self._options.idle_after_s))
                await asyncio.Event().wait()

    def _info(self, nats: NatsAccess) -> SuiteInfo:
        return SuiteInfo(
            gateway_url=self._url,
            pid=os.getpid(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            nats_url=nats.url,
            has_claude_key=self._secrets.anthropic_api_key is not None,
        )

    async def _nats(self, supervisor: Supervisor) -> dict[str, NatsAccess]:
        """Starts the embedded server, or finds that the given one answers: how each service gets in."""
        if self._options.nats_url is not None:
            access = given_server(self._options.nats_url, self._dir.nats_password)
            await wait_until_ready(access, _GIVEN_NATS_WITHIN_S)
            return dict.fromkeys(SERVICES, access)
        server = NatsServer(self._dir.nats)
        self._held.callback(server.release_port)
        env = service_environment(os.environ)
        log = self._dir.log(_NATS)
        supervisor.start([Child(_NATS, server.argv, env, log, self._dir.path, explain=why_it_ended)])
        await wait_until_ready(server.access, _READY_WITHIN_S)
        return {name: server.access_of(name) for name in SERVICES}

    def _service_env(self, nats: NatsAccess) -> dict[str, str]:
        return service_environment(os.environ) | nats.environment() | {"TREADLE_DATA": str(self._dir.path)}

    def _service(self, name: str, env: dict[str, str], **more: Any) -> Child:
        # -P: the working directory must not lend modules to a service.
        argv = self._options.programs.get(name) or [sys.executable, "-P", "-m", f"services.{name}"]
        return Child(name, argv, env, self._dir.log(name), self._dir.path, **more)

    def _gateway(self, nats: NatsAccess) -> Child:
        settings = {
            "TREADLE_GATEWAY_HOST": LOOPBACK,
            "TREADLE_GATEWAY_PORT": str(self._port.number),
            "TREADLE_GATEWAY_TOKEN_FILE": str(self._dir.token),
            "TREADLE_GATEWAY_SECRET_FILE": str(self._dir.secret),
            "TREADLE_GATEWAY_KEYRING_FILE": str(self._dir.keyring),
            "TREADLE_LOCAL_REPOSITORIES": "1",
        }
        return self._service("gateway", self._service_env(nats) | self._database() | settings)

    async def _migrate(self, supervisor: Supervisor) -> None:
        """Brings the database to this version's tables."""
        if is_migrated(self._dir.database):
            return
        env = service_environment(os.environ) | self._database() | {"TREADLE_DATA": str(self._dir.path)}
        gateway = self._service("gateway", env)
        child = replace(gateway, name="the database's migration", argv=[*gateway.argv, "migrate"])
        await supervisor.run_once(child)

    def _database(self) -> dict[str, str]:
        return {"TREADLE_DATABASE_URL": f"sqlite:///{quote(str(self._dir.database))}"}

    def _runner(self, number: int, nats: NatsAccess) -> Child:
        name, state = f"runner-{number}", make_private_dir(self._dir.runner(number))
        env = runner_environment(os.environ) | self._service_env(nats)
        env |= {
            "TREADLE_RUNNER_DIR": str(state),
            "TREADLE_RUNNER_NAME": name,
            "TREADLE_SLOTS": str(self._options.slots),
            "TREADLE_SANDBOX": self._options.sandbox,
        }
        argv = self._options.programs.get("runner") or [sys.executable, "-P", "-m", "services.runner"]
        return Child(name, argv, env, self._dir.log(name), self._dir.path, self._secrets.line(), _RUNNER_STOPS_WITHIN_S)

    async def _gateway_answers(self, http: httpx.AsyncClient, supervisor: Supervisor) -> None:
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                while True:
                    if await self._answer(http, "/api/health/live") and not supervisor.troubled():
                        return
                    await asyncio.sleep(_ASK_AGAIN_S)
        except TimeoutError:
            raise SuiteError(
                f"the gateway did not answer within {_READY_WITHIN_S:g} s; its log: {self._dir.log('gateway')}"
            ) from None

    async def _stop_when_idle(self, http: httpx.AsyncClient, idle_after_s: float) -> None:
        clock = asyncio.get_running_loop().time
        used_s = clock()
        while True:
            await asyncio.sleep(idle_after_s / _LOOKS_PER_IDLE_TIME)
            answer = await self._answer(http, "/api/suite")
            # A gateway that does not answer is being started again: that says nothing about work.
            if answer is None or answer.json()["busy"] or answer.json()["clients"]:
                used_s = clock()
            elif clock() - used_s >= idle_after_s and (alone := self._dir.shut_out_clients()):
                self._held.enter_context(alone)
                self._say("nobody uses the suite: it stops")
                self._stop()
                return

    async def _answer(self, http: httpx.AsyncClient, path: str) -> httpx.Response | None:
        try:
            answer = await http.get(path)
        except httpx.HTTPError:
            return None
        return answer if answer.is_success else None

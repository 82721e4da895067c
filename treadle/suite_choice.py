"""The options of the commands that may start a suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast, get_args

import click

from services.runner.api_address import BadAddress, api_address
from services.runner.sandbox_mode import SandboxMode
from treadle.bad_input import BadInput
from treadle.instance import Instance
from treadle.supervision.suite_info import SuiteOptions

F = TypeVar("F", bound=Callable[..., Any])


def suite_options(command: F) -> F:
    """Adds them, and gives the command what they come to. Raises `BadInput`."""

    @click.option("--runners", type=click.IntRange(0, 64), default=1, show_default=True, help="Runner processes.")
    @click.option("--slots", type=click.IntRange(1, 64), default=2, show_default=True, help="Tasks at once per runner.")
    @click.option("--nats", "nats_url", help="Use this NATS server, nats://[user:password@]host:port, not our own.")
    @click.option(
        "--sandbox",
        type=click.Choice(get_args(SandboxMode)),
        default="preferred",
        envvar="TREADLE_SANDBOX",
        show_default=True,
        show_envvar=True,
        help="Whether agents are kept in; see `treadle doctor`.",
    )
    @wraps(command)
    def with_options(
        *args: Any, runners: int, slots: int, nats_url: str | None, sandbox: SandboxMode, **more: Any
    ) -> Any:
        instance = click.get_current_context().find_object(Instance)
        if instance is None:
            raise TypeError("the group has not chosen an instance")
        if instance.elsewhere is None and (address := os.environ.get("ANTHROPIC_BASE_URL")):
            try:
                api_address(address)
            except BadAddress as error:
                raise BadInput(f"ANTHROPIC_BASE_URL: {error}; correct or unset it") from error
        options = SuiteOptions(
            data_dir=str(instance.data_dir.path), runners=runners, slots=slots, nats_url=nats_url, sandbox=sandbox
        )
        return command(*args, options=options, **more)

    return cast(F, with_options)

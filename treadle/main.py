"""The command `treadle`: every subcommand, and how errors reach a person."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

from services.planner.estimate import estimate
from services.runner.git import GitFailed
from shared.memory import hide_memory
from treadle import repository
from treadle.api import ApiError
from treadle.approval_commands import approval_commands
from treadle.archives import archive_commands
from treadle.bad_input import BadInput
from treadle.events import events
from treadle.fork import fork
from treadle.goal_commands import goal_commands
from treadle.imported import imported
from treadle.instance import Instance
from treadle.logs import logs
from treadle.operation_commands import operation_commands
from treadle.plan_commands import plan_commands
from treadle.plan_file import describe, read_plan_file
from treadle.project_commands import projects
from treadle.replay.command import replay
from treadle.run import ATTENTION, BAD_INPUT, INTERRUPTED, run_plan, say
from treadle.suite_choice import suite_options
from treadle.supervision.ensure import stop_suite
from treadle.supervision.environment import Secrets
from treadle.supervision.suite_error import SuiteError
from treadle.supervision.suite_info import SuiteOptions
from treadle.task_commands import task
from treadle.template_commands import templates
from treadle.templates import Filling, run_template
from treadle.why import why_command
from treadle.workspaces import workspaces


class Treadle(click.Group):
    """Turns what goes wrong into one message and an exit status; a traceback is a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand."""
        try:
            return super().invoke(ctx)
        except (BadInput, repository.BadRepository, SuiteError, GitFailed) as error:
            say(f"treadle: {error}")
            ctx.exit(BAD_INPUT)
        except ApiError as error:
            say(f"treadle: {error}")
            ctx.exit(BAD_INPUT if error.status < 500 else ATTENTION)
        except httpx.HTTPError as error:
            say(f"treadle: the gateway does not answer ({type(error).__name__}): try again, or see `treadle doctor`")
            ctx.exit(ATTENTION)
        except BrokenPipeError:
            # Whoever read our output has gone, as `| head` does.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            ctx.exit(INTERRUPTED)


@click.group(cls=Treadle, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Data directory [TREADLE_DATA, ~/.local/share/treadle].")
@click.option("--url", help="A gateway elsewhere [TREADLE_URL]; its token: TREADLE_TOKEN_FILE or TREADLE_TOKEN.")
@click.version_option(package_name="treadle", prog_name="treadle")
@click.pass_context
def main(ctx: click.Context, data: Path | None, url: str | None) -> None:
    """Runs plans of coding tasks, done by AI agents in git worktrees."""
    hide_memory()  # our environment may hold the key
    ctx.obj = Instance.chosen(data, url, os.environ)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The gateway's port [any free one].")
@suite_options
@click.pass_obj
def up(instance: Instance, port: int, options: SuiteOptions) -> None:
    """Runs the suite in the foreground until Ctrl-C."""
    instance.own("up")
    from services.runner.sandbox import NoSandbox, probe_sandbox  # here, as they take longer than most commands do
    from treadle.supervision.suite import run_supervisor

    if options.sandbox == "preferred":
        try:
            probe_sandbox(hidden=[instance.data_dir.path])
        except NoSandbox as why:
            say(f"note: there is no sandbox, so agents can do whatever you can: {why}")
    run_supervisor(
        msgspec.structs.replace(options, gateway_port=port),
        Secrets.of(os.environ),
        say=say,
        on_ready=lambda info: say(f"ready: {info.gateway_url} (Ctrl-C stops; what runs is handed back)"),
    )


@main.command()
@click.pass_obj
def down(instance: Instance) -> None:
    """Stops the running suite; unfinished plans go on at the next start."""
    say("stopped" if stop_suite(instance.own("down")) else "no suite is running")


@main.command()
@click.argument("plan_file", required=False, type=click.Path(path_type=Path))
@click.option("--template", help="Name or id of a template to make the plan of, instead of a file.")
@click.option("--role", "roles", multiple=True, metavar="SLOT=AGENT", help="Who fills a role of the template.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=VALUE", help="What the template asks for.")
@click.option("--repo", default=".", show_default=True, help="A path in a git repository, or a clone URL.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event.")
@click.option("--detach", is_flag=True, help="Submit, and don't watch.")
@click.option("--project", help="Id or name of the project [the repository's oldest automatic one, made if missing].")
@suite_options
@click.pass_obj
def run(
    instance: Instance,
    plan_file: Path | None,
    template: str | None,
    roles: tuple[str, ...],
    inputs: tuple[str, ...],
    repo: str,
    as_json: bool,
    detach: bool,
    project: str | None,
    options: SuiteOptions,
) -> None:
    """Runs a plan on a repository, to its end: PLAN_FILE, or a template (see `treadle templates`).

    With --project the plan can use the agents of that project.

    Exit status: 0 completed, 1 something needs attention, 2 bad input, 130 interrupted.
    """
    if (plan_file is None) == (template is None):
        raise click.UsageError("name what to run: a plan file, or a template by --template")
    if template is None and (roles or inputs):
        raise BadInput("--role and --input fill a template in: name it by --template")
    filled = Filling.of(template, roles, inputs) if template is not None else None
    file = read_plan_file(plan_file) if plan_file is not None else None
    chosen = repository.choose(repo, allow_local=instance.elsewhere is None)
    if filled is not None:
        status = run_template(filled, chosen, instance, options, project=project, as_json=as_json, detach=detach)
    elif file is not None:
        status = run_plan(file, chosen, instance, options, project=project, as_json=as_json, detach=detach)
    sys.exit(status)


@main.command()
@click.argument("plan_file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def validate(plan_file: Path, as_json: bool) -> None:
    """Checks a plan file: the order of work, and the most it can cost.

    Exit status: 0 valid, 2 not; every fault is named.
    """
    spec = read_plan_file(plan_file).alone()
    told = estimate(spec)
    click.echo(msgspec.json.encode(told).decode() if as_json else describe(spec, told))


@main.command(name="demo")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event.")
def demo_command(as_json: bool) -> None:
    """Runs a plan of seven tasks on a small repository made for it."""
    from treadle.demo import demo  # here, since it takes longer than most commands do

    sys.exit(demo(as_json=as_json))


@main.command(name="doctor")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def doctor_command(instance: Instance, as_json: bool) -> None:
    """Says what is missing or wrong here, and how to mend it."""
    from treadle import doctor  # here, since it takes longer than most commands do

    found = doctor.checks(instance.own("doctor"), os.environ)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for check in found:
            mend = f" — {check.mend}" if check.grade != "ok" and check.mend else ""
            click.echo(f"{check.grade:<5} {check.name}: {check.found}{mend}")
    sys.exit(doctor.exit_status(found))


for _command in (
    *plan_commands,
    replay,
    events,
    why_command,
    fork,
    *archive_commands,
    imported,
    *goal_commands,
    task,
    logs,
    projects,
    templates,
    workspaces,
    *operation_commands,
):
    main.add_command(_command)
for _command in approval_commands:
    task.add_command(_command)

"""`treadle run --template`: a template, filled in, becomes a plan that runs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from treadle.api import ApiError, Gateway, Resource
from treadle.bad_input import BadInput
from treadle.instance import Instance
from treadle.plain_text import one_line
from treadle.projects import MAKES_AGENTS
from treadle.repository import Chosen
from treadle.run import finalize, project_to_run_in, say, see_run
from treadle.supervision.suite_info import SuiteOptions

_LINE = re.compile(r" \(line \d+\)$")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


class Filling(msgspec.Struct, frozen=True):
    """What a person says of a template."""

    template: str
    roles: dict[str, str]
    inputs: dict[str, str]

    @classmethod
    def of(cls, template: str, roles: tuple[str, ...], inputs: tuple[str, ...]) -> Filling:
        """Raises `BadInput` for what is no pair, and for a name that is given twice."""
        return cls(template, _pairs(roles, "--role", "SLOT=AGENT"), _pairs(inputs, "--input", "NAME=VALUE"))


def run_template(
    filled: Filling,
    repo: Chosen,
    instance: Instance,
    options: SuiteOptions,
    *,
    project: str | None,
    as_json: bool,
    detach: bool,
) -> int:
    """Makes a plan of the template, finalizes and watches it; returns the exit status."""
    for note in repo.notes:
        say(f"note: {note}")
    with instance.reach(options) as reached:
        gateway = reached.gateway()
        template = find_template(gateway, filled.template)
        wanted = project_to_run_in(gateway, repo, project)
        body = {
            "template_id": template["id"],
            "roles": filled.roles,
            "inputs": typed(filled.inputs, template),
            "base_commit": repo.commit,
        }
        made = _filled_in(gateway, wanted, template, body)
        finalize(gateway, made["plan"], made["candidate"])
        return see_run(made["plan"], "", reached, instance, options, as_json=as_json, detach=detach)


def _filled_in(gateway: Gateway, project: str, template: Resource, body: Resource) -> Resource:
    try:
        return gateway.post(f"/projects/{project}/plans/from-template", body)
    except ApiError as error:
        if not error.faults:
            raise
        # The lines are those of the template's text, which whoever fills it in does not see.
        faults = [_LINE.sub("", fault) for fault in error.faults]
        if any(fault.startswith("roles.") for fault in faults):
            agents = f"`treadle projects set {project} agent_ids='[\"SLUG\", …]'` gives the project agents"
            faults.append(f"({agents}; {MAKES_AGENTS})")
        told = "\n".join(faults)
        raise BadInput(f"the template {one_line(template['name'], 60)} can't be filled in so:\n{told}") from error


def find_template(gateway: Gateway, wanted: str) -> Resource:
    """The template with that id or name. Raises `BadInput` for none and for several."""
    found = list(gateway.pages("/templates"))
    named = [one for one in found if wanted in (one["id"], one["name"])] or [
        one for one in found if one["name"].casefold() == wanted.casefold()
    ]
    if not named:
        raise BadInput(f"there is no template {one_line(wanted, 60)}: `treadle templates` lists them")
    if len(named) > 1:
        ids = ", ".join(one["id"] for one in named[:5])
        raise BadInput(f"{len(named)} templates are called {one_line(wanted, 60)}: name one by its id ({ids})")
    return gateway.get(f"/templates/{named[0]['id']}", Resource)


def typed(inputs: Mapping[str, str], template: Resource) -> dict[str, str | float | bool]:
    """The values as the template's inputs want them; what is of no such type is left for the gateway to name."""
    types = {one["name"]: one.get("type", "text") for one in template.get("inputs") or ()}
    return {name: _value(text, types.get(name, "text")) for name, text in inputs.items()}


def _value(text: str, kind: str) -> str | float | bool:
    if kind == "boolean":
        return _BOOLEANS.get(text.strip().lower(), text)
    if kind == "number":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _pairs(texts: tuple[str, ...], option: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise BadInput(f"{option} {one_line(text, 60)} says nothing: write {form}")
        if name in pairs:
            raise BadInput(f"{option} {one_line(name, 60)} is given twice")
        pairs[name] = value
    return pairs

"""What attempts left of their work that did not come to their end, for the bundle of a plan's commits."""

from __future__ import annotations

from services.runner.git import GitFailed
from services.runner.mirror import Mirror
from services.runner.snapshots import wip_ref
from shared.requests import BundleRequest, Unfinished


def unfinished_work(mirror: Mirror, request: BundleRequest) -> tuple[dict[str, Unfinished], str]:
    """What the request's leases left, by its ref, fetched; and why some of it could not be had: a bundle goes without.

    Most leases leave nothing.
    """
    wanted = {wip_ref(request.plan, task, lease): (task, lease) for task, lease in request.leases}
    if not wanted:
        return {}, ""
    found: dict[str, Unfinished] = {}
    try:
        tips = mirror.remote_tips(f"refs/treadle/{request.plan}/*-wip")
        there = {ref: Unfinished(*wanted[ref], commit) for ref, commit in tips.items() if ref in wanted}
        for ref, one in there.items():
            mirror.ensure(request.plan, [one.commit])
            found[ref] = one
    except GitFailed as error:
        return found, str(error)
    return found, ""

"""`treadle clean`: what may go, with sizes; and, when asked, its removal.

Nothing goes by itself here: without `--yes` it only lists. What a running task uses is never listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from services.runner.caches import cache_of, remove_cache
from services.runner.deliver import delete_task_refs
from services.runner.git import GitFailed
from services.runner.in_use import leases_left, lives
from services.runner.mirror import Mirror, mirror_of
from services.runner.workspace import LEFT_OUT, Stored, list_workspaces, remove_tree, remove_workspace, size_bytes
from treadle.api import Gateway

REFS_KEPT_DAYS = 3
"""The refs of an ended plan's tasks stay so long, for people to look at."""

NO_FORK = "and a fork of the plan can then keep only what is in that"

Plan = dict[str, Any]


class Item(msgspec.Struct, frozen=True):
    """Something that takes space."""

    kind: str
    """`workspace`, `mirror`, `scratch`, `refs`, `cache`."""
    name: str
    size_bytes: int
    reason: str
    """Why it may go, or why it should stay."""
    unsaved: bool
    """It holds work that exists nowhere else: removed only when that is asked for too."""
    remove: Callable[[], object]

    def shown(self) -> dict[str, object]:
        """For output."""
        return {
            "kind": self.kind,
            "name": self.name,
            "size_bytes": self.size_bytes,
            "reason": self.reason,
            "unsaved": self.unsaved,
        }


def find_items(data_dir: Path, gateway: Gateway, now: datetime) -> list[Item]:
    """Everything that may go, in the order in which to remove it.

    The disk is looked at first and the log afterwards, so that what has begun meanwhile is not taken for ended.
    """
    workspaces = list_workspaces(data_dir)
    scratch = sorted((data_dir / "scratch").glob("*"))
    mirrors = sorted((data_dir / "mirrors").glob("*.git"))
    plans = {plan["plan"]: plan for plan in gateway.pages("/plans")}
    # What makes a candidate is no task of its plan; and a runner of this machine may be ahead of what we were told.
    live = _live_leases(gateway, plans) | {name for name in leases_left(data_dir) if lives(data_dir, name)}
    found = _workspaces(workspaces, plans, live)
    kept = {item.name for item in found if item.unsaved}
    return [
        *found,
        *_scratch(scratch, live),
        *_refs(data_dir, plans, now),
        # A workspace that stays borrows its mirror's objects.
        *([] if kept or live else _mirrors(data_dir, mirrors, plans)),
        *([] if live else _caches(data_dir, plans)),
    ]


def size_words(count: int) -> str:
    """Bytes for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _live_leases(gateway: Gateway, plans: dict[str, Plan]) -> set[tuple[str, str, int]]:
    found: set[tuple[str, str, int]] = set()
    for plan, view in plans.items():
        if view["status"] in ("completed", "cancelled"):
            continue
        for task in gateway.pages(f"/plans/{plan}/tasks"):
            if task["status"] in ("running", "cancelling"):
                found.add((plan, task["code"], task["lease"]))
    return found


def _workspaces(stored_ones: Sequence[Stored], plans: dict[str, Plan], live: set[tuple[str, str, int]]) -> list[Item]:
    items = []
    for stored in stored_ones:
        if (stored.plan, stored.task, stored.lease) in live:
            continue
        known = "" if stored.plan in plans else ", of a plan that is not in the log"
        reason = "holds work that was never pushed" if stored.unsaved else "its lease has ended"
        if (stored.path / LEFT_OUT).exists():
            reason = "holds git repositories of their own, which are in no commit"
        name = f"{stored.plan} {stored.task} lease {stored.lease} ({stored.path / 'code'})"
        items.append(Item("workspace", name, stored.size_bytes, reason + known, stored.unsaved, _remover(stored.path)))
    return items


def _remover(path: Path) -> Callable[[], object]:
    return lambda: remove_workspace(path)


def _scratch(paths: Sequence[Path], live: set[tuple[str, str, int]]) -> list[Item]:
    used = {f"{plan}-{task}-{lease}" for plan, task, lease in live}
    left = [path for path in paths if path.name not in used]
    return [Item("scratch", p.name, size_bytes(p), "left by a killed runner", False, _tree_remover(p)) for p in left]


def _mirrors(data_dir: Path, paths: Sequence[Path], plans: dict[str, Plan]) -> list[Item]:
    open_plans = [p for p in plans.values() if p["status"] not in ("completed", "cancelled")]
    used = {_mirror(data_dir, plan).path for plan in open_plans}
    left = [path for path in paths if path.resolve() not in used]
    urls = {_mirror(data_dir, plan).path: plan["repo_url"] for plan in plans.values()}
    reason = "no open plan uses it; it is fetched again when needed"
    return [
        Item("mirror", str(urls.get(p.resolve(), p.name)), size_bytes(p), reason, False, _tree_remover(p)) for p in left
    ]


def _caches(data_dir: Path, plans: dict[str, Plan]) -> list[Item]:
    urls = {cache_of(data_dir, _mirror(data_dir, plan)): plan["repo_url"] for plan in plans.values()}
    reason = "what set-up commands have downloaded; they download it again when needed"
    found = [path.resolve() for path in sorted((data_dir / "caches").glob("[!.]*"))]
    return [Item("cache", str(urls.get(p, p.name)), size_bytes(p), reason, False, _cache_remover(p)) for p in found]


def _cache_remover(path: Path) -> Callable[[], object]:
    def remove() -> None:
        with suppress(BlockingIOError):  # a task has begun to use it meanwhile
            remove_cache(path, wait=False)

    return remove


def _mirror(data_dir: Path, plan: Plan) -> Mirror:
    return mirror_of(data_dir, plan["repo_url"], plan["project"])


def _tree_remover(path: Path) -> Callable[[], object]:
    return lambda: remove_tree(path)


def _refs(data_dir: Path, plans: dict[str, Plan], now: datetime) -> list[Item]:
    items = []
    needed = _needed_by_forks(plans)
    for plan, view in plans.items():
        ended = datetime.fromisoformat(view["updated_at"])
        if view["status"] not in ("completed", "cancelled") or now.astimezone(UTC) - ended < timedelta(
            days=REFS_KEPT_DAYS
        ):
            continue
        if plan in needed:
            continue
        mirror = _mirror(data_dir, view)
        if not mirror.path.exists() or not _has_refs(mirror, plan):
            continue
        reason = f"the plan ended {(now.astimezone(UTC) - ended).days} days ago; its branch stays, {NO_FORK}"
        items.append(
            Item("refs", f"refs/treadle/{plan}/ in {mirror.shown}", 0, reason, False, _ref_remover(mirror, plan))
        )
    return items


def _needed_by_forks(plans: dict[str, Plan]) -> set[str]:
    """Plans whose work a plan that has not ended may rest on: its origin, and that one's where it is a fork too."""
    needed: set[str] = set()
    for view in plans.values():
        if view["status"] in ("completed", "cancelled"):
            continue
        at: Plan | None = view
        while at is not None and (origin := at.get("forked_from")) and origin["plan"] not in needed:
            needed.add(origin["plan"])
            at = plans.get(origin["plan"])
    return needed


def _has_refs(mirror: Mirror, plan: str) -> bool:
    try:
        return bool(mirror.remote_refs(f"refs/treadle/{plan}/*"))
    except GitFailed:
        return False  # the repository is gone or out of reach: nothing can be removed there


def _ref_remover(mirror: Mirror, plan: str) -> Callable[[], object]:
    return lambda: delete_task_refs(mirror, plan)


def total(items: Sequence[Item]) -> int:
    """Bytes in all."""
    return sum(item.size_bytes for item in items)

"""What a fault of git means for an attempt: its kind, and words that a person can act on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.runner.failed import Failed
from services.runner.git import GitFailed, GitRejected, MergeConflict
from services.runner.git_threads import in_thread
from shared.events import ARTIFACTS_MAX, Conflict, FailureKind

T = TypeVar("T")


async def in_git(work: Callable[[], T], kind: FailureKind, threads: ThreadPoolExecutor) -> T:
    """Runs blocking git work as `in_thread` does. Raises `Failed` with `kind`, or as a merge conflict."""
    try:
        return await in_thread(work, threads)
    except MergeConflict as conflict:
        raise _conflicting(conflict) from conflict
    except GitRejected as error:
        raise Failed("setup_failed", _sentence(str(error))) from error  # it would be refused again
    except GitFailed as error:
        raise Failed(kind, _sentence(str(error))) from error
    except OSError as error:
        raise Failed("setup_failed", f"The workspace could not be used: {error}") from error


def _conflicting(conflict: MergeConflict) -> Failed:
    # What is on somebody's branch is nothing that a task of the plan could merge.
    tasks = None if conflict.against else Conflict(files=conflict.files[:ARTIFACTS_MAX], tasks=conflict.codes)
    return Failed("merge_conflict", f"{_sentence(str(conflict))} {conflict.remedy}".strip(), tasks)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")

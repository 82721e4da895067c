"""Which repository, and which commit of it: what `treadle run --repo` makes of its argument."""

from __future__ import annotations

from pathlib import Path

import git
from git.exc import GitCommandError, InvalidGitRepositoryError, NoSuchPathError

from services.runner.deliver import checked_out_in
from shared.repo_url import BadRepoUrl, check_repo_url
from treadle.plain_text import one_line

LS_REMOTE_TIMEOUT_S = 60


class BadRepository(Exception):
    """The repository can't be used; the text says why and what to do."""


class Chosen:
    """A repository's address and the commit that the plan starts from."""

    def __init__(self, url: str, commit: str, notes: tuple[str, ...] = ()) -> None:
        self.url = url
        self.commit = commit
        self.notes = notes
        """What the person should know."""


def choose(text: str, *, allow_local: bool = True) -> Chosen:
    """Takes a path or a clone URL. Raises `BadRepository`.

    A gateway elsewhere can't read a path of this machine: `allow_local` says whether one will do.
    """
    path = Path(text).expanduser()
    if path.exists() and not allow_local:
        raise BadRepository(f"{text} is on this machine, where that gateway can't read it: give --repo a clone URL")
    if path.exists():
        return _local(path)
    try:
        url = check_repo_url(text, allow_local=False, allow_private_hosts=True)
    except BadRepoUrl as error:
        if "://" in text or "@" in text:
            raise BadRepository(str(error)) from error
        wanted = "a path to one, or a clone URL" if allow_local else "a clone URL"
        raise BadRepository(f"there is no repository at {text}: give --repo {wanted}") from error
    return _remote(url)


def _local(path: Path) -> Chosen:
    try:
        repo = git.Repo(path, search_parent_directories=True)
    except (InvalidGitRepositoryError, NoSuchPathError) as error:
        raise BadRepository(f"{path} is not in a git repository: run `git init` there and commit something") from error
    with repo:
        top = Path(repo.working_tree_dir or repo.git_dir).resolve()
        try:
            commit = repo.git.rev_parse("--verify", "--quiet", "--end-of-options", "HEAD^{commit}")
        except GitCommandError as error:
            raise BadRepository(f"{top} has no commit yet: commit something there, plans start from HEAD") from error
        if repo.git.rev_parse("--show-object-format") != "sha1":
            raise BadRepository(f"{top} has SHA-256 object ids, which Treadle does not support yet")
        if any(head.name == "treadle" for head in repo.heads):
            raise BadRepository(
                f"{top} has a branch called treadle, beside which git can't make treadle/<plan>: rename it first, "
                "with `git branch -m treadle another-name`"
            )
        notes = []
        if not repo.bare and repo.git.status("--porcelain", "--untracked-files=no", "--ignore-submodules"):
            notes.append(f"uncommitted changes in {top} are not part of the plan; your files are not touched")
        return Chosen(str(top), commit, tuple(notes))


def merge_notes(url: str, branch: str) -> list[str]:
    """Why a plan could not be merged into a branch (empty: the default one) in the end, as things stand now.

    Only for a repository of this machine: others are looked at when it comes to that.
    """
    if not Path(url).is_dir():
        return []
    then = "all its work is done and kept, but its delivery will fail unless you"
    with git.Repo(url) as repo:
        try:
            target = branch or repo.git.symbolic_ref("--quiet", "--short", "HEAD")
        except GitCommandError:
            return [f"the plan is to be merged into the default branch, and {url} is on none: {then} switch to one"]
        try:
            repo.git.rev_parse("--verify", "--quiet", "--end-of-options", f"refs/heads/{target}")
        except GitCommandError:
            shown = one_line(target)
            return [f"the plan is to be merged into the branch {shown}, which {url} does not have: {then} make it"]
        place = checked_out_in(url, f"refs/heads/{target}")
    if not place:
        return []
    words = f"the plan is to be merged into the branch {target}, which is checked out in {place}"
    return [f"{words}, whose files Treadle never changes: {then} switch to another branch there"]


def _remote(url: str) -> Chosen:
    command = git.cmd.Git()
    try:
        environment = {"GIT_TERMINAL_PROMPT": "0"}
        listed = command.execute(
            ["git", "ls-remote", "--exit-code", "--", url, "HEAD"], env=environment,
            kill_after_timeout=LS_REMOTE_TIMEOUT_S,
        )  # fmt: skip
    except GitCommandError as error:
        why = one_line(str(error.stderr).replace("stderr:", "")) or f"exit status {error.status}"
        raise BadRepository(f"{url} can't be read, or has no commit: {why}") from error
    return Chosen(url, str(listed).split()[0])

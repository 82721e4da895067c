"""What a project gives to its plans when they are finalized."""

import msgspec

from services.gateway.database.tables import Project
from shared.spec import CollabRules, Delivery, OnConflict, Permission, PlanSettings


def settings_of(project: Project) -> PlanSettings:
    """The settings as they are now: what is changed later does not reach a plan that was finalized with these."""
    return PlanSettings(
        task_timeout_minutes=project.task_timeout_minutes,
        max_parallel=project.max_parallel,
        budget_usd=project.budget_usd,
        setup=tuple(project.setup),
        env_allow=tuple(project.env_allow),
        network_allow=tuple(project.network_allow),
        permissions=msgspec.convert(project.permissions, tuple[Permission, ...]),
        approval_timeout_minutes=project.approval_timeout_minutes,
        verify_rounds=project.verify_rounds,
        on_conflict=msgspec.convert(project.on_conflict, OnConflict),
        delivery=msgspec.convert(project.delivery, Delivery),
        delivery_branch=project.delivery_branch,
        delivery_command=project.delivery_command,
        collab=collab_of(project),
    )


def collab_of(project: Project) -> CollabRules:
    """Where its people put what they deliver."""
    return CollabRules(
        repo_url=project.collab_repo_url or project.code_repo_url,
        directory=project.collab_dir,
        poll_interval_s=project.poll_interval_s,
    )

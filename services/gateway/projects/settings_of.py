"""What a project gives to its plans when they are finalized."""

import msgspec

from services.gateway.database.tables import Project
from shared.spec import Delivery, PlanSettings


def settings_of(project: Project) -> PlanSettings:
    """The settings as they are now: what is changed later does not reach a plan that was finalized with these."""
    return PlanSettings(
        task_timeout_minutes=project.task_timeout_minutes,
        max_parallel=project.max_parallel,
        budget_usd=project.budget_usd,
        setup=tuple(project.setup),
        env_allow=tuple(project.env_allow),
        delivery=msgspec.convert(project.delivery, Delivery),
    )

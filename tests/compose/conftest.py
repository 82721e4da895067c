"""One suite for all tests here: building and starting it takes minutes."""

from collections.abc import Iterator

import pytest

from tests.compose import engine
from tests.compose.team import Team, team


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Skips, and says why, where there is no engine or no way to its base images; a build that fails is a failure."""
    obstacle = engine.use_compose(tmp_path_factory.mktemp("docker"))
    if obstacle:
        pytest.skip(obstacle)
    with team(tmp_path_factory.mktemp("team")) as running:
        yield running

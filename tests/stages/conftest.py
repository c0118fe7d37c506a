"""What several tests of the stages share because it takes seconds to make."""

from collections.abc import Mapping

import pytest

from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace
from tests.stages import toy


@pytest.fixture(scope="session")
def toy_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Where the tiny pipeline lies; nobody may change what others made there."""
    return Workspace(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_inputs(toy_workspace: Workspace) -> Mapping[str, Artifact]:
    """Every artifact that an evaluation of the tiny pipeline reads."""
    return toy.evaluate_inputs(toy_workspace)

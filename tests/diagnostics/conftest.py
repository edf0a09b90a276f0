"""What the tests of diagnostics share: agents that are trained once, and reports that are written once."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from environments import SMALL, ToyEnv

from sb3_agd import AGDPPO
from sb3_agd.diagnostics import imagination_report


@pytest.fixture
def hopper(hopper_file: Path) -> AGDPPO:
    """The agent."""
    return AGDPPO.load(hopper_file, device="cpu")


@pytest.fixture(scope="session")
def toy_agent() -> AGDPPO:
    """Agent in an environment with a reward of 1 in each of 20 steps."""
    return AGDPPO("MlpPolicy", ToyEnv(terminates=True), **SMALL, gamma=0.5).learn(64)


@pytest.fixture(scope="session")
def report(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and figures of a report with strong guidance, without a video."""
    folder = tmp_path_factory.mktemp("reports") / "new" / "folder"
    model, make_env = AGDPPO.load(hopper_file, device="cpu"), partial(gym.make, "Hopper-v5")
    return folder, imagination_report(model, make_env, folder, 4, "eag", 5.0, n_filmed=0)

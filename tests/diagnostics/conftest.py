"""What the tests of diagnostics share: agents that are trained once, and reports that are written once."""

import contextlib
import io
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from environments import SMALL, ToyEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.diagnostics import imagination_report
from sb3_agd.zoo.cli import main


@pytest.fixture(scope="session")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of an agent that was trained with normalisation. With its discount factor, Monte Carlo returns take few steps."""
    file = tmp_path_factory.mktemp("trained") / "hopper.zip"
    AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Hopper-v5", seed=0)), **SMALL, gamma=0.8).learn(128).save(file)
    return file


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


@pytest.fixture(scope="session")
def command_run(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Folder, output and errors of a run of the command, with a video if MuJoCo can render."""
    folder = tmp_path_factory.mktemp("command")
    words = ["sb3-agd", "imagine", "--env", "Hopper-v5", "--model", str(hopper_file), "-f", str(folder)]
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("MUJOCO_GL", "egl")
        patch.setattr(sys, "argv", [*words, "--n-starts", "2", "--n-filmed", "3"])
        main()
    return folder, out.getvalue(), err.getvalue() + "".join(f"{warning.message}\n" for warning in caught)

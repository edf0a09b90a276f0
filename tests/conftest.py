"""What all tests share."""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from environments import SMALL
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO, DiffusionWorldModel
from sb3_agd.zoo.cli import main

# On matrices as small as those of the tests, more threads are many times slower when the machine has other work.
# Processes that tests start inherit the variable
os.environ["OMP_NUM_THREADS"] = "1"
th.set_num_threads(1)
# Environments in other processes are forked from one that has imported what takes seconds
multiprocessing.set_forkserver_preload(["stable_baselines3", "gymnasium"])
# Figures are saved and never shown
os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(autouse=True, scope="session")
def temporary_logs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each training has a folder for its logs: by default a new one in /tmp, which nobody deletes."""
    os.environ["SB3_LOGDIR"] = str(tmp_path_factory.mktemp("logs"))


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Function that runs a command in this process."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sb3-agd", *arguments])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            main()
        finally:
            # Training handles it
            signal.signal(signal.SIGTERM, handler)

    return run


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world model is updated a few times only."""
    fit = DiffusionWorldModel.fit

    def short_fit(self: DiffusionWorldModel, source: Any, gradient_steps: int, *args: Any, **kwargs: Any) -> dict[str, float]:
        return fit(self, source, min(gradient_steps, 5), *args, **kwargs)

    monkeypatch.setattr(DiffusionWorldModel, "fit", short_fit)


@pytest.fixture
def short_training(short_fits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends as soon as imagination begins with the default warm-up, and updates the world model a few times only."""
    learn = OnPolicyAlgorithm.learn

    def short_learn(self: OnPolicyAlgorithm, total_timesteps: int, *args: Any, **kwargs: Any) -> OnPolicyAlgorithm:
        # What was frozen for an evaluation must not stay so
        normalization = self.get_vec_normalize_env()
        assert normalization is None or normalization.training
        return learn(self, min(total_timesteps, 1024), *args, **kwargs)

    monkeypatch.setattr(OnPolicyAlgorithm, "learn", short_learn)


@pytest.fixture(scope="session")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of an agent that was trained with normalisation. With its discount factor, Monte Carlo returns take few steps."""
    file = tmp_path_factory.mktemp("trained") / "hopper.zip"
    AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Hopper-v5", seed=0)), **SMALL, gamma=0.8).learn(128).save(file)
    return file


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

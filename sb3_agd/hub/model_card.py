"""The model card of a trained agent: what it is, what it returned, and how to load it."""

import pprint
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gymnasium as gym
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_sb3 import EnvironmentName, ModelName

from sb3_agd import __version__
from sb3_agd.zoo.benchmark import training_steps
from sb3_agd.zoo.experiment_manager import CHECKPOINT_NAME, AGDExperimentManager
from sb3_agd.zoo.settings import read_saved

TEMPLATE = Path(__file__).with_suffix(".jinja")
# Where the card's commands put the agent
FOLDER = "agents"
# Packages whose versions are saved with an agent, as SB3 names them there
SAVED_VERSIONS = ("Stable-Baselines3", "PyTorch", "Gymnasium")
# Settings with which an agent's observations are not those of the task
WRAPPERS = ("env_wrapper", "vec_env_wrapper", "frame_stack")


@dataclass(frozen=True)
class Agent:
    """
    A trained agent in a run folder of RL-Zoo.

    :param algo: Name of the algorithm
    :param env_id: Environment ID
    :param file: File of the agent
    """

    algo: str
    env_id: str
    file: Path

    @property
    def env_name(self) -> EnvironmentName:
        """Name of the environment in paths."""
        return EnvironmentName(self.env_id)

    @property
    def name(self) -> ModelName:
        """Name of the agent on the hub."""
        return ModelName(self.algo, self.env_name)

    @property
    def settings(self) -> Path:
        """Folder of what RL-Zoo saved about the training."""
        return self.file.parent / self.env_name

    def read_settings(self, file: str) -> dict[str, Any]:
        """
        :param file: ``"args.yml"`` for the command line of the training, ``"config.yml"`` for the hyperparameters
        :return: Its content
        """
        return read_saved(self.settings / file)

    @property
    def training(self) -> str:
        """Length of the training."""
        steps = f"{training_steps(str(self.file)):,}"
        before = self.read_settings("args.yml")["trained_agent"]
        # Only these go on counting
        is_resumed = self.algo == "agdppo" and CHECKPOINT_NAME.fullmatch(Path(before).name) is not None
        return f"{steps} further steps, from an agent trained before" if before and not is_resumed else f"{steps} steps"

    @property
    def acts_stochastically(self) -> bool:
        """Whether ``enjoy`` draws its actions by default."""
        # Other packages register their tasks in the process of the evaluation only
        if self.env_id not in gym.registry:
            return False
        return AGDExperimentManager.is_atari(self.env_id) or AGDExperimentManager.is_minigrid(self.env_id)

    @property
    def versions(self) -> str:
        """Versions of the packages that the agent was trained with."""
        with ZipFile(self.file) as archive:
            lines = archive.read("system_info.txt").decode().splitlines()
        saved = dict(line.removeprefix("- ").split(": ", 1) for line in lines)
        return ", ".join(f"{package} {saved[package]}" for package in SAVED_VERSIONS)


@dataclass(frozen=True)
class Evaluation:
    """
    Episodes that an agent was evaluated in.

    :param returns: Return of each episode
    :param n_timesteps: Number of steps that ``enjoy`` played
    :param options: Its further options
    """

    returns: np.ndarray
    n_timesteps: int
    options: list[str]


def model_card(agent: Agent, evaluation: Evaluation, repo_id: str | None) -> str:
    """
    :param agent: The agent
    :param evaluation: Its evaluation
    :param repo_id: Name of the repository on the hub, with the organization; ``None`` for files that do not go there
    :return: The model card
    """
    hyperparameters, command_line = agent.read_settings("config.yml"), agent.read_settings("args.yml")
    # The command line of the training has the number that counts
    hyperparameters.pop("n_timesteps", None)
    options = evaluation.options
    is_stochastic = "--stochastic" in options or (agent.acts_stochastically and "--deterministic" not in options)
    value = f"{evaluation.returns.mean():.2f} +/- {evaluation.returns.std():.2f}"
    result = EvalResult(
        task_type="reinforcement-learning",
        dataset_type=agent.env_id,
        dataset_name=agent.env_id,
        metric_type="mean_reward",
        metric_value=value,
    )
    metadata = ModelCardData(
        library_name="stable-baselines3",
        tags=[agent.env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3_agd"],
        model_name=agent.algo.upper(),
        eval_results=[result],
    )
    source, trust = ["--local", "."], ""
    if repo_id is not None:
        organization, name = repo_id.split("/")
        source, trust = ["-orga", organization, "-name", name], "TRUST_REMOTE_CODE=True "

    def command(name: str, *options: str) -> str:
        return shlex.join(["sb3-agd", name, "--algo", agent.algo, "--env", agent.env_id, "-f", FOLDER, *options])

    card = ModelCard.from_template(
        metadata,
        str(TEMPLATE),
        title=agent.algo.upper(),
        is_agdppo=agent.algo == "agdppo",
        is_best=agent.file.name == "best_model.zip",
        is_wrapped=any(hyperparameters.get(name) for name in WRAPPERS),
        env_id=agent.env_id,
        env_kwargs=command_line["env_kwargs"] or hyperparameters.get("env_kwargs"),
        training=agent.training,
        seed=command_line["seed"],
        value=value,
        n_episodes=len(evaluation.returns),
        kind="stochastic" if is_stochastic else "deterministic",
        versions=agent.versions,
        version=__version__,
        repo_id=repo_id,
        load=trust + command("load-from-hub", *source),
        enjoy=command("enjoy"),
        film=command("record-video", "-n", "1000", "-o", "videos"),
        evaluate=command("enjoy", "--no-render", "-n", str(evaluation.n_timesteps), *options),
        # As `load-from-hub` names the first agent of a folder
        file=f"{FOLDER}/{agent.algo}/{agent.env_name}_1/{agent.env_name}.zip",
        hyperparameters=pprint.pformat(hyperparameters),
    )
    return f"{card}\n"

"""The model card of a trained agent: what it is, what it returned, and how to load it."""

import pprint
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_sb3 import EnvironmentName, ModelName

from sb3_agd import __version__
from sb3_agd.zoo.benchmark import training_steps

# Where the card's commands put the agent
FOLDER = "agents"
# Packages whose versions are saved with an agent, as SB3 names them there
SAVED_VERSIONS = ("Stable-Baselines3", "PyTorch", "Gymnasium")
# Settings with which an agent's observations are not those of the task
WRAPPERS = ("env_wrapper", "vec_env_wrapper", "frame_stack")

CARD = """---
{metadata}
---

# **{title}** agent playing **{env_id}**

| | |
|---|---|
| algorithm | {algorithm} |
| task | {env_id}{env_kwargs} |
| training | {steps:,} steps, seed {seed}{selection} |
| return | {mean:.2f} +/- {deviation:.2f}, mean and standard deviation of {n_episodes} episodes with {kind} actions |
| versions | trained with {versions}; evaluated with sb3_agd {version} |

## Load and watch it

In a clone of the repository of sb3_agd, install the package:

```bash
pip install -c constraints.txt ".[zoo]"
```

Then, {place}, load the agent and watch it. Loading it can run any code, since its file is unpickled: do so only if you
trust its source.

```bash
{load}
{enjoy}
```

These are the episodes of the return above:

```bash
{evaluate}
```
{imagination}
## Hyperparameters

As RL-Zoo takes them, where `lin_X` falls from X to 0 in the course of the training. All others are the defaults of {title}.

```python
{hyperparameters}
```

## Limits

This is one agent, trained with {steps:,} steps on one seed. Chance weighs: another seed may give a much better or a much
worse one.
{citation}"""

IMAGINATION = """
## Imagine with it

The file holds the world model as well, in which the agent can act. `sb3-agd imagine` compares that with the real task:

```bash
sb3-agd imagine --env {env_id} --model {file}
```
"""

IMAGINATION_IN_PYTHON = """
In Python, from four states at the start of episodes:

```python
from stable_baselines3.common.env_util import make_vec_env

from sb3_agd import AGDPPO

model = AGDPPO.load("{file}", device="cpu")
observations = make_vec_env("{env_id}", n_envs=4, seed=0{env_kwargs}).reset()
print(model.imagine(observations, seed=0))
```
"""

CITATION = """
## Citation

AGDPPO is based on this paper, with changes:

```bibtex
@article{agd_mbrl,
  author  = {Daniele Foffano and Arvid Eriksson and David Broman and Karl H. Johansson and Alexandre Proutiere},
  title   = {Advantage-Guided Diffusion for Model-Based Reinforcement Learning},
  journal = {arXiv preprint arXiv:2604.09035},
  year    = {2026}
}
```
"""


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
        # No more dangerous than the agent's file, which holds pickles, too
        return dict(yaml.load((self.settings / file).read_text(), Loader=yaml.UnsafeLoader))

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


def card_metadata(agent: Agent, evaluation: Evaluation) -> str:
    """
    :param agent: The agent
    :param evaluation: Its evaluation
    :return: What the hub reads, as YAML
    """
    result = EvalResult(
        task_type="reinforcement-learning",
        dataset_type=agent.env_id,
        dataset_name=agent.env_id,
        metric_type="mean_reward",
        metric_value=f"{evaluation.returns.mean():.2f} +/- {evaluation.returns.std():.2f}",
    )
    return ModelCardData(
        library_name="stable-baselines3",
        tags=[agent.env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3_agd"],
        model_name=agent.algo.upper(),
        eval_results=[result],
    ).to_yaml()


def imagination_section(agent: Agent, hyperparameters: dict[str, Any], env_kwargs: dict[str, Any]) -> str:
    """
    :param agent: An agent of AGDPPO
    :param hyperparameters: Its hyperparameters
    :param env_kwargs: Arguments of its task
    :return: How to imagine with its world model
    """
    # As `load-from-hub` names the first agent of a folder
    file = f"{FOLDER}/{agent.algo}/{agent.env_name}_1/{agent.env_name}.zip"
    section = IMAGINATION.format(env_id=agent.env_id, file=file)
    if any(hyperparameters.get(name) for name in WRAPPERS):
        return section
    argument = f", env_kwargs={env_kwargs}" if env_kwargs else ""
    return section + IMAGINATION_IN_PYTHON.format(env_id=agent.env_id, file=file, env_kwargs=argument)


def model_card(agent: Agent, evaluation: Evaluation, repo_id: str | None) -> str:
    """
    :param agent: The agent
    :param evaluation: Its evaluation
    :param repo_id: Name of the repository on the hub, with the organization; ``None`` for files that do not go there
    :return: The model card
    """
    hyperparameters, command_line = agent.read_settings("config.yml"), agent.read_settings("args.yml")
    env_kwargs = command_line["env_kwargs"] or hyperparameters.get("env_kwargs") or {}
    # The command line of the training has the number that counts
    hyperparameters.pop("n_timesteps", None)
    selected = ["--algo", agent.algo, "--env", agent.env_id]
    if repo_id is None:
        source, trust = ["--local", "."], ""
    else:
        organization, name = repo_id.split("/")
        source, trust = ["-orga", organization, "-name", name], "TRUST_REMOTE_CODE=True "
    enjoy = shlex.join(["sb3-agd", "enjoy", *selected, "-f", FOLDER])
    is_agdppo = agent.algo == "agdppo"
    title = agent.algo.upper()
    return CARD.format(
        metadata=card_metadata(agent, evaluation),
        title=title,
        algorithm=f"{title}, PPO that also learns from what a diffusion world model imagines" if is_agdppo else title,
        env_id=agent.env_id,
        env_kwargs=f" with {env_kwargs}" if env_kwargs else "",
        steps=training_steps(str(agent.file)),
        seed=command_line["seed"],
        selection=", the best agent of the evaluations on the way" if agent.file.name == "best_model.zip" else "",
        mean=evaluation.returns.mean(),
        deviation=evaluation.returns.std(),
        n_episodes=len(evaluation.returns),
        kind="random" if "--stochastic" in evaluation.options else "deterministic",
        versions=agent.versions,
        version=__version__,
        place="in the folder of this card" if repo_id is None else "in any folder",
        load=trust + shlex.join(["sb3-agd", "load-from-hub", *selected, *source, "-f", FOLDER]),
        enjoy=enjoy,
        evaluate=f"{enjoy} --no-render -n {evaluation.n_timesteps} {shlex.join(evaluation.options)}".rstrip(),
        imagination=imagination_section(agent, hyperparameters, env_kwargs) if is_agdppo else "",
        hyperparameters=pprint.pformat(hyperparameters),
        citation=CITATION if is_agdppo else "",
    )

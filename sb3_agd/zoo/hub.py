"""``sb3-agd push-to-hub``: an agent in the form that ``load-from-hub`` reads."""

import argparse
import pprint
import shutil
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import huggingface_hub
import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from rl_zoo3.utils import get_model_path, get_saved_hyperparams

from sb3_agd.zoo.benchmark import evaluate

CARD = """---
{metadata}
---

# **{algo}** agent playing **{env_id}**

A trained agent for [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) from
[RL Baselines3 Zoo](https://github.com/DLR-RM/rl-baselines3-zoo) with the package sb3_agd.

```bash
TRUST_REMOTE_CODE=True sb3-agd load-from-hub --algo {algo} --env {env_id} -orga {organization} -name {repo_name} -f logs
sb3-agd enjoy --algo {algo} --env {env_id} -f logs
```

Hyperparameters:

```python
{hyperparameters}
```
"""


def model_card(algo: str, env_id: str, repo_id: str, returns: np.ndarray, hyperparameters: dict[str, Any]) -> str:
    """
    :param algo: Name of the algorithm
    :param env_id: Environment ID
    :param repo_id: Name of the repository, with the organization
    :param returns: Returns of the agent
    :param hyperparameters: Its hyperparameters
    :return: The model card
    """
    result = EvalResult(
        task_type="reinforcement-learning",
        dataset_type=env_id,
        dataset_name=env_id,
        metric_type="mean_reward",
        metric_value=f"{returns.mean():.2f} +/- {returns.std():.2f}",
    )
    metadata = ModelCardData(
        library_name="stable-baselines3",
        tags=[env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"],
        model_name=algo.upper(),
        eval_results=[result],
    )
    organization, repo_name = repo_id.split("/")
    return CARD.format(
        metadata=metadata.to_yaml(),
        algo=algo,
        env_id=env_id,
        organization=organization,
        repo_name=repo_name,
        hyperparameters=pprint.pformat(dict(hyperparameters)),
    )


def gather_files(agent: Path, env_name: EnvironmentName, name: ModelName, folder: Path) -> None:
    """
    Copy what belongs to an agent.

    :param agent: File of the agent
    :param env_name: Name of the environment
    :param name: Name of the agent on the hub
    :param folder: Folder for the hub
    """
    settings = agent.parent / env_name
    shutil.copy(agent, folder / name.filename)
    shutil.copy(settings / "args.yml", folder)
    shutil.copy(settings / "config.yml", folder)
    # No more dangerous than the agent's file, which holds pickles, too
    env_kwargs = yaml.load((settings / "args.yml").read_text(), Loader=yaml.UnsafeLoader)["env_kwargs"]
    (folder / "env_kwargs.yml").write_text(yaml.dump(env_kwargs or {}))
    statistics = settings / "vecnormalize.pkl"
    if statistics.is_file():
        shutil.copy(statistics, folder / "vec_normalize.pkl")
    with ZipFile(folder / "train_eval_metrics.zip", "w") as archive:
        for file in (*agent.parent.glob("evaluations.npz"), *agent.parent.glob("*.csv")):
            archive.write(file, file.name)


def run(arguments: argparse.Namespace) -> None:
    """
    Evaluate an agent and push it.

    :param arguments: Command line, see :func:`sb3_agd.zoo.parsers.add_push_arguments`
    """
    env_name = EnvironmentName(arguments.env)
    name = ModelName(arguments.algo, env_name)
    repo_id = str(ModelRepoId(arguments.organization, arguments.repo_name or name))
    _, agent, log_path = get_model_path(
        arguments.exp_id, arguments.folder, arguments.algo, env_name, load_best=arguments.load_best
    )
    options = ["--exp-id", str(arguments.exp_id), *(["--load-best"] if arguments.load_best else [])]
    returns = evaluate(
        arguments.algo, arguments.env, arguments.folder, arguments.n_timesteps, [*options, *arguments.enjoy_options]
    )
    hyperparameters, _ = get_saved_hyperparams(str(Path(log_path) / env_name))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        gather_files(Path(agent), env_name, name, folder)
        card = model_card(arguments.algo, arguments.env, repo_id, returns, hyperparameters)
        (folder / "README.md").write_text(card)
        if arguments.video is not None:
            # The hub shows a video of this name
            shutil.copy(arguments.video, folder / "replay.mp4")
        api = huggingface_hub.HfApi()
        url = api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=arguments.commit_message)
    print(f"Pushed to {url}")

"""Tuned settings from the files in ``hyperparams/``, which have RL-Zoo's format."""

from pathlib import Path
from typing import Any

import torch.nn as nn
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

HYPERPARAMS = Path(__file__).parent.parent / "hyperparams"
# What the training environment is made of, as opposed to the arguments of the algorithm
ENVIRONMENT_KEYS = ("normalize", "n_envs", "n_timesteps")


def load_settings(algorithm: str, env_id: str) -> dict[str, Any]:
    """
    :param algorithm: Name of a file in ``hyperparams/``, without its ending
    :param env_id: Name of the task
    :return: Settings of the algorithm on the task
    :raises SystemExit: If there are none
    """
    file = HYPERPARAMS / f"{algorithm}.yml"
    settings = yaml.safe_load(file.read_text())
    if env_id not in settings:
        raise SystemExit(f"{file.name} has no settings for {env_id}, only for {', '.join(settings)}")
    chosen = settings[env_id]
    if "policy_kwargs" in chosen:
        # RL-Zoo's way of naming classes in a settings file
        chosen["policy_kwargs"] = eval(chosen["policy_kwargs"], {"nn": nn, "dict": dict})
    return ExperimentManager._preprocess_schedules(chosen)


def algorithm_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """
    :param settings: Settings of a task
    :return: Those that are arguments of the algorithm
    """
    return {key: value for key, value in settings.items() if key not in ENVIRONMENT_KEYS}


def make_environment(env_id: str, settings: dict[str, Any], seed: int) -> VecEnv:
    """
    :param env_id: Name of the task
    :param settings: Settings of the task
    :param seed: Seed of the environments
    :return: The environments to train in, normalised if the settings ask for it
    """
    env = make_vec_env(env_id, n_envs=settings["n_envs"], seed=seed)
    if not settings.get("normalize", False):
        return env
    return VecNormalize(env, gamma=settings.get("gamma", 0.99))

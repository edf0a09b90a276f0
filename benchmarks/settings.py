"""Tuned settings from the files in ``hyperparams/``, which have RL-Zoo's format."""

from functools import cache
from typing import Any

import torch.nn as nn
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_agd.zoo.experiment_manager import AGDExperimentManager
from sb3_agd.zoo.settings import HYPERPARAMS, split_config

# What the training environment is made of, as opposed to the arguments of the algorithm
ENVIRONMENT_KEYS = ("normalize", "n_envs", "n_timesteps")


@cache
def read_settings(config: str) -> dict[str, dict[str, Any]]:
    """
    :param config: Name of a file in ``hyperparams/``, or ``FILE.yml:ENTRY`` for one of several sets of settings in it
    :return: Settings by task; not to be changed
    :raises FileNotFoundError: If there is no such file
    :raises KeyError: If it has no such entry
    """
    file, entry = split_config(config)
    content = yaml.safe_load((HYPERPARAMS / file).read_text())
    return content if entry is None else content[entry]


def settings_of(config: str, env_id: str) -> dict[str, Any]:
    """
    :param config: As for :func:`read_settings`
    :param env_id: Name of the task
    :return: Settings of the task, or the ``default`` ones for those that are not in the file, as in RL-Zoo
    :raises FileNotFoundError: If there is no such file
    :raises KeyError: If it has no such entry, or nothing for the task
    """
    settings = read_settings(config)
    return settings[env_id if env_id in settings else "default"]


def load_settings(algorithm: str, env_id: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    :param algorithm: Name of a file in ``hyperparams/``, without its ending
    :param env_id: Name of the task
    :param changes: Settings in place of those in the file, or besides them
    :return: Settings of the algorithm on the task
    :raises SystemExit: If there are none
    """
    settings = read_settings(f"{algorithm}.yml")
    if env_id not in settings:
        raise SystemExit(f"{algorithm}.yml has no settings for {env_id}, only for {', '.join(settings)}")
    chosen = settings[env_id] | (changes or {})
    if "policy_kwargs" in chosen:
        # RL-Zoo's way of naming classes in a settings file
        chosen["policy_kwargs"] = eval(chosen["policy_kwargs"], {"nn": nn, "dict": dict})
    return AGDExperimentManager._preprocess_schedules(chosen)


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

"""Functions of vectorised environments, SB3's own and those of other packages."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper


def innermost(env: Any) -> Any:
    """
    :param env: Vectorised environment, ``None`` for none
    :return: The environment inside all wrappers. It need not be a ``VecEnv``, because adapters of other packages are wrappers
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def same_objects(some: list[Any], others: list[Any]) -> bool:
    """
    :param some: Objects
    :param others: Objects
    :return: Whether they are identical (``is``), in the same order
    """
    return list(map(id, some)) == list(map(id, others))


def copied(observations: Any) -> Any:
    """
    :param observations: Observations of all environments, or a dictionary of them
    :return: A copy
    """
    if isinstance(observations, dict):
        return {key: np.array(part) for key, part in observations.items()}
    return np.array(observations)


def is_same(observations: Any, others: Any) -> bool:
    """
    :param observations: Observations of all environments, or a dictionary of them
    :param others: Other observations
    :return: Whether they are the same object or hold the same values
    """
    if observations is others:
        return True
    if isinstance(observations, dict) and isinstance(others, dict):
        return observations.keys() == others.keys() and all(np.array_equal(observations[key], others[key]) for key in others)
    return np.array_equal(observations, others)

"""Trainings in small environments that are drawn at random."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from environments import SMALL
from gymnasium import spaces
from logs import ImaginedRows
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_agd import AGDPPO

KINDS = ("box", "discrete", "multi-discrete", "multi-binary")
GUIDANCES = ("sag", "eag", "reward", "none")
# All combinations; what is drawn besides depends on their number
CASES = list(enumerate(itertools.product(KINDS, GUIDANCES, ("gradient", "select"), (False, True))))


def spread(n_points: int, names: Sequence[str]) -> list[dict[str, float]]:
    """
    :param n_points: Number of points
    :param names: Names of the dimensions
    :return: Points of a Latin hypercube: of `n_points` equal parts of [0, 1), each dimension has one point in each
    """
    rng = np.random.default_rng(0)
    parts = rng.permuted(np.tile(np.arange(n_points), (len(names), 1)), axis=1)
    return [dict(zip(names, point, strict=True)) for point in ((parts + rng.random(parts.shape)) / n_points).T]


ENVIRONMENT = ("size", "is_double", "scale", "reward_scale", "length", "terminal_share", "action_size", "bound")
DRAWS = spread(len(CASES), (*ENVIRONMENT, "n_envs", "n_steps", "batch_size", "horizon"))


def power_of_ten(share: float, low: float, high: float) -> float:
    """A number from 10^low to 10^high."""
    return 10 ** (low + share * (high - low))


def whole_number(share: float, low: int, high: int) -> int:
    """A number from `low` to `high`."""
    return low + int(share * (high + 1 - low))


class RandomEnv(gym.Env):
    """
    An environment with spaces, scales, constant dimensions and episodes that a number decides.

    :param number: Number of the case
    :param stream: Which of several such environments, whose numbers must differ
    """

    def __init__(self, number: int, stream: int):
        draw, (kind, *_) = DRAWS[number], CASES[number][1]
        self.rng = np.random.default_rng(number)
        size = whole_number(draw["size"], 1, 5)
        self.scale = 10 ** self.rng.uniform(-6, 6, size=size)
        self.scale[0] = power_of_ten(draw["scale"], -6, 6)
        self.scale[self.rng.random(size) < 0.2] = 0
        self.reward_scale = power_of_ten(draw["reward_scale"], -6, 6)
        self.length = int(power_of_ten(draw["length"], 0, 3))
        self.terminal_share = draw["terminal_share"]
        self.observation_space = spaces.Box(
            -np.inf, np.inf, (size,), dtype=np.float64 if draw["is_double"] < 0.5 else np.float32
        )
        action_size, bound = whole_number(draw["action_size"], 1, 3), np.float32(power_of_ten(draw["bound"], -3, 3))
        self.action_space = {
            "box": spaces.Box(-bound, 2 * bound, (action_size,), dtype=np.float32),
            "discrete": spaces.Discrete(action_size + 1),
            "multi-discrete": spaces.MultiDiscrete([2, 3]),
            "multi-binary": spaces.MultiBinary(action_size),
        }[kind]
        self.rng = np.random.default_rng([number, stream])

    def _observe(self) -> np.ndarray:
        observation = 1 + self.scale * self.rng.normal(size=len(self.scale))
        return observation.astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.steps += 1
        # Lengths vary, and ends of both kinds mix
        over = self.rng.random() < 1 / self.length
        terminal = over and self.rng.random() < self.terminal_share
        return self._observe(), self.reward_scale * self.rng.normal(), terminal, over and not terminal, {}


@pytest.mark.parametrize(("number", "choices"), CASES)
def test_random_environments_train_without_errors_and_stay_finite(number: int, choices: tuple[str, str, str, bool]) -> None:
    _, guidance, guidance_mode, normalizes = choices
    draw = DRAWS[number]
    n_envs = whole_number(draw["n_envs"], 1, 4)
    env: VecEnv = DummyVecEnv([partial(RandomEnv, number, stream) for stream in range(n_envs)])
    if normalizes:
        env = VecNormalize(env)
    n_steps = whole_number(draw["n_steps"], 2, 39)
    changes = {
        "n_steps": n_steps,
        "batch_size": whole_number(draw["batch_size"], 2, 59),
        "horizon": whole_number(draw["horizon"], 1, 8),
        "guidance": guidance,
        "guidance_mode": guidance_mode,
        "n_candidates": 3,
        "real_steps_per_update": n_steps * n_envs,
        "seed": number,
    }
    model = AGDPPO("MlpPolicy", env, **SMALL | changes)
    rows = ImaginedRows()
    model.learn(2 * n_steps * n_envs, callback=rows)
    assert all(rows.counts)
    assert model.num_timesteps == 2 * n_steps * n_envs
    for module in (model.policy, model.world_model):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())

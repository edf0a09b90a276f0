"""Trainings in small environments that are drawn at random."""

import itertools
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

CHOICES = {
    "action_space": ("box", "discrete", "multi-discrete", "multi-binary"),
    "guidance": ("sag", "eag", "reward", "none"),
    "guidance_mode": ("gradient", "select"),
    "is_normalized": (False, True),
    "n_envs": (1, 2, 3, 4),
    "dtype": (np.float32, np.float64),
    "has_constants": (False, True),
}
# Numbers that are drawn evenly from 0 to 1, and scaled where they are used
DRAWN = ("size", "scale", "reward_scale", "length", "terminal_share", "action_size", "bound")
DRAWN += ("n_steps", "batch_size", "horizon")


def combinations_of_choices() -> list[dict[str, Any]]:
    """All combinations of the first four choices. The others follow from them so that any three are combined in full."""
    combinations = []
    for space, guidance, mode, normalized in itertools.product(range(4), range(4), range(2), range(2)):
        n_envs = space ^ guidance ^ (2 * mode + normalized)
        dtype, constants = (guidance + mode + normalized) % 2, (space // 2 + mode + normalized) % 2
        numbers = (space, guidance, mode, normalized, n_envs, dtype, constants)
        combinations.append({name: CHOICES[name][number] for name, number in zip(CHOICES, numbers, strict=True)})
    return combinations


def latin_hypercube(n_points: int) -> list[dict[str, float]]:
    """
    :param n_points: Number of points
    :return: Points of which each of the `n_points` equal parts of a dimension has one, so that no extreme is missed
    """
    rng = np.random.default_rng(0)
    parts = rng.permuted(np.tile(np.arange(n_points), (len(DRAWN), 1)), axis=1)
    return [dict(zip(DRAWN, point, strict=True)) for point in ((parts + rng.random(parts.shape)) / n_points).T]


COMBINATIONS = combinations_of_choices()
CASES = [choices | draws for choices, draws in zip(COMBINATIONS, latin_hypercube(len(COMBINATIONS)), strict=True)]


def power_of_ten(share: float, low: float, high: float) -> float:
    """A number from 10^low to 10^high."""
    return 10 ** (low + share * (high - low))


def whole_number(share: float, low: int, high: int) -> int:
    """A number from `low` to `high`."""
    return low + int(share * (high + 1 - low))


class RandomEnv(gym.Env):
    """
    An environment whose spaces, scales, constant dimensions and episodes a case decides.

    :param number: Number of the case
    :param stream: Which of several such environments, whose observations and rewards must differ
    """

    def __init__(self, number: int, stream: int):
        case, self.rng = CASES[number], np.random.default_rng(number)
        size = whole_number(case["size"], 1, 5)
        self.scale = 10 ** self.rng.uniform(-6, 6, size=size)
        self.scale[0] = power_of_ten(case["scale"], -6, 6)
        if case["has_constants"]:
            self.scale[-1] = 0
            self.scale[self.rng.random(size) < 0.2] = 0
        self.reward_scale = power_of_ten(case["reward_scale"], -6, 6)
        self.length = int(power_of_ten(case["length"], 0, 3))
        self.terminal_share = case["terminal_share"]
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), dtype=case["dtype"])
        action_size, bound = whole_number(case["action_size"], 1, 3), np.float32(power_of_ten(case["bound"], -3, 3))
        self.action_space = {
            "box": spaces.Box(-bound, 2 * bound, (action_size,), dtype=np.float32),
            "discrete": spaces.Discrete(action_size + 1),
            "multi-discrete": spaces.MultiDiscrete([2, 3]),
            "multi-binary": spaces.MultiBinary(action_size),
        }[case["action_space"]]
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


def test_any_three_choices_are_combined_in_full() -> None:
    for names in itertools.combinations(CHOICES, 3):
        assert {tuple(case[name] for name in names) for case in CASES} == set(itertools.product(*map(CHOICES.get, names)))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_random_environments_train_without_errors_and_stay_finite(number: int) -> None:
    case = CASES[number]
    env: VecEnv = DummyVecEnv([partial(RandomEnv, number, stream) for stream in range(case["n_envs"])])
    if case["is_normalized"]:
        env = VecNormalize(env)
    n_steps = whole_number(case["n_steps"], 2, 39)
    changes = {
        "n_steps": n_steps,
        "batch_size": whole_number(case["batch_size"], 2, 59),
        "horizon": whole_number(case["horizon"], 1, 8),
        "guidance": case["guidance"],
        "guidance_mode": case["guidance_mode"],
        "n_candidates": 3,
        "real_steps_per_update": n_steps * env.num_envs,
        "seed": number,
    }
    model = AGDPPO("MlpPolicy", env, **SMALL | changes)
    rows = ImaginedRows()
    model.learn(2 * n_steps * env.num_envs, callback=rows)
    assert all(rows.counts)
    assert model.num_timesteps == 2 * n_steps * env.num_envs
    for module in (model.policy, model.world_model):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())

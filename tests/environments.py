"""Small environments for the tests."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SMALL: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 2,
    "policy_kwargs": {"net_arch": [16]},
    "device": "cpu",
    "seed": 0,
    "synthetic_ratio": 2.0,
    "horizon": 4,
    "n_denoising_steps": 2,
    "world_model_gradient_steps": 3,
    "world_model_batch_size": 16,
    "world_model_warmup": 0,
    "real_steps_per_update": 32,
    "world_model_kwargs": {"network_kwargs": {"width": 16, "depth": 1}},
}
# One of each kind that can be imagined
SPACES: list[spaces.Space] = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-2, 5, (2, 3)),
    spaces.Box(0, 9, (2,), dtype=np.int64),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]


class ToyEnv(gym.Env):
    """
    Observations are drawn from the space, rewards are 1. Whatever a test wants to be special is an argument.

    :param observation_space: Any space
    :param action_space: Any space
    :param episode_length: Steps until the episode ends
    :param terminates: Whether the end is a terminal state rather than a time limit
    :param observe: Observation of a step number, ``None`` to draw from the space
    :param reward: Reward of a step number
    """

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        episode_length: int = 20,
        terminates: bool = False,
        observe: Callable[[int], np.ndarray] | None = None,
        reward: Callable[[int], float] = lambda step: 1.0,
    ):
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,))
        self.action_space = action_space or spaces.Box(-1, 1, (2,))
        self.episode_length = episode_length
        self.terminates = terminates
        self.observe = observe
        self.reward = reward
        self.steps = 0
        self.total_steps = 0
        self.received: list[Any] = []

    def _observation(self) -> Any:
        return self.observation_space.sample() if self.observe is None else self.observe(self.steps)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.received.append(action)
        self.steps += 1
        self.total_steps += 1
        over = self.steps >= self.episode_length
        observation = self._observation()
        return observation, self.reward(self.total_steps), over and self.terminates, over and not self.terminates, {}

"""The newest real rows that the critic is judged on, of several rollouts if they are short."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import explained_variance

# Rows that are enough to judge the critic and the world model on
MIN_ROWS = 256


@dataclass(frozen=True)
class RealRows:
    """
    The newest real rows, those of several short rollouts joined: a few rows say nothing about the critic.

    :param rewards: In the critic's units, shape (T, n_envs)
    :param values: Values by the critic of the time, shape (T, n_envs)
    :param episode_starts: Whether each row begins an episode, shape (T, n_envs)
    :param advantages: Generalised advantages over all of the rows, shape (T, n_envs)
    """

    rewards: np.ndarray
    values: np.ndarray
    episode_starts: np.ndarray
    advantages: np.ndarray

    @classmethod
    def of(cls, buffer: RolloutBuffer, before: RealRows | None) -> RealRows:
        """
        :param buffer: A full rollout buffer, not yet flattened
        :param before: Rows up to the rollout before, ``None`` if there are none
        :return: The rows of the buffer, after as many earlier ones as are missing to ``MIN_ROWS``, and to two steps
        """
        # The buffer changes its arrays in place
        newest = cls(*map(np.array, (buffer.rewards, buffer.values, buffer.episode_starts, buffer.advantages)))
        n_missing = max(math.ceil(MIN_ROWS / buffer.n_envs), 2) - buffer.buffer_size
        # A loaded model may go on with another number of environments
        if before is None or n_missing <= 0 or before.values.shape[1] != buffer.n_envs:
            return newest
        rewards, values, starts = (
            np.concatenate([getattr(before, name)[-n_missing:], getattr(newest, name)])
            for name in ("rewards", "values", "episode_starts")
        )
        advantages = np.concatenate([np.zeros_like(values[: -buffer.buffer_size]), newest.advantages])
        joined = cls(rewards, values, starts, advantages)
        errors, decay = joined.one_step_advantages(buffer.gamma), buffer.gamma * buffer.gae_lambda
        for step in reversed(range(len(values) - buffer.buffer_size)):
            advantages[step] = errors[step] + decay * (1 - starts[step + 1]) * advantages[step + 1]
        return joined

    @property
    def explained_variance(self) -> float:
        """Share of the variance of the returns that the critic explains, at least 0."""
        values = self.values.flatten()
        variance = explained_variance(values, values + self.advantages.flatten())
        return float(np.nan_to_num(np.clip(variance, 0, 1)))

    def one_step_advantages(self, gamma: float) -> np.ndarray:
        """
        :param gamma: Discount factor
        :return: Those of all rows but the last, shape (T - 1, n_envs)
        """
        continues = 1 - self.episode_starts[1:]
        return self.rewards[:-1] + gamma * continues * self.values[1:] - self.values[:-1]

    def advantage_std(self, gamma: float) -> float:
        """
        :param gamma: Discount factor
        :return: Standard deviation of the one-step advantages of all rows but the last, 0 if there is only one
        """
        return float(self.one_step_advantages(gamma).std()) if len(self.values) > 1 else 0.0

"""Values within the range that real rewards make attainable."""

import math

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

UNKNOWN_RANGE = (-math.inf, math.inf)
# Returns count as sums of this many rewards at most, also if the discount factor is 1 or close to it
MAX_RETURN_STEPS = 10_000


def attainable_range(low_reward: float, high_reward: float, gamma: float) -> tuple[float, float]:
    """
    Range of the returns that are possible with rewards in a range.

    Values learned on imagined states feed on themselves: each target bootstraps on values of other imagined states, which no
    real reward ever corrects, and optimism can grow without limit. The bound is independent of that loop, since it is made
    of real rewards alone. It leaves room for improvement: only an agent that earns the highest reward at each step reaches it.
    A bound by the returns earned so far would cut the values of better behaviour.

    :param low_reward: Lowest real reward, in the critic's units
    :param high_reward: Highest real reward, in the critic's units
    :param gamma: Discount factor
    :return: Lowest and highest attainable value. 0, the value after a termination, is between them
    """
    n_steps = min(1 / max(1 - gamma, 1e-9), MAX_RETURN_STEPS)
    return min(low_reward, 0.0) * n_steps, max(high_reward, 0.0) * n_steps


def bound_values(
    buffer: RolloutBuffer,
    rewards: np.ndarray,
    last_values: th.Tensor,
    dones: np.ndarray,
    value_range: tuple[float, float],
    gamma: float,
) -> None:
    """
    Estimate the advantages and returns of the real rows anew, with values within the attainable range. The first
    states of a new behaviour lie far from all that the critic was trained on, and its values there can be far from
    any return: they must not become targets either.

    :param buffer: The algorithm's rollout buffer, not yet flattened
    :param rewards: Rewards of the rollout in the critic's units, shape (n_steps, n_envs)
    :param last_values: Values of the states after the last step
    :param dones: Whether the last step ended an episode
    :param value_range: Lowest and highest attainable value
    :param gamma: Discount factor of the algorithm at present. The buffer keeps to the one that it was made with
    """
    low, high = value_range
    # SB3 has added the discounted value of the last state to the reward of each episode that a time limit cut off
    added = buffer.rewards - rewards
    if gamma > 0:
        bounded = np.clip(added, gamma * low, gamma * high)
        np.copyto(buffer.rewards, rewards + bounded, where=bounded != added)
    values = buffer.values
    buffer.values = np.clip(values, low, high)
    buffer.compute_returns_and_advantage(last_values.clamp(low, high), dones)
    np.clip(buffer.returns, low, high, out=buffer.returns)
    # PPO limits how far values move from those of the critic (`clip_range_vf`)
    buffer.values = values

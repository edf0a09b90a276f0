"""Values within the range of returns that real rewards make credible."""

import math

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

# The range of real returns, widened by this share of its width, bounds all values and value targets
VALUE_MARGIN = 0.25
UNKNOWN_RANGE = (-math.inf, math.inf)
# Returns are known from so many times 1 / (1 - gamma) steps of an environment, or from so many steps: fewer show only a part
# of what is earned later
RETURN_HORIZONS = 5
MAX_RETURN_STEPS = 10_000


def discounted_returns(rewards: np.ndarray, gamma: float, future: float = 0.0) -> np.ndarray:
    """
    :param rewards: Rewards of consecutive steps, shape (T,)
    :param gamma: Discount factor
    :param future: Return after the last step
    :return: Discounted sum of the rewards from each step on, shape (T,)
    """
    returns = np.empty(len(rewards))
    for step in reversed(range(len(rewards))):
        future = float(rewards[step]) + gamma * future
        returns[step] = future
    return returns


def real_advantages(buffer: RolloutBuffer) -> np.ndarray:
    """
    :param buffer: A full rollout buffer, not yet flattened
    :return: One-step advantages of all steps but the last, shape (n_steps - 1, n_envs); zeros if there is only one step
    """
    if buffer.buffer_size < 2:
        return np.zeros((1, buffer.n_envs))
    continues = 1 - buffer.episode_starts[1:]
    return buffer.rewards[:-1] + buffer.gamma * continues * buffer.values[1:] - buffer.values[:-1]


def credible_range(episodes: list[tuple[np.ndarray, bool]], gamma: float) -> tuple[float, float]:
    """
    Range of the discounted returns of real rewards, with a margin.

    Values learned on imagined states feed on themselves: each target bootstraps on values of other imagined
    states, which no real reward ever corrects, and any optimism grows without limit. The cure is a bound from
    outside of that loop. It is made of real rewards alone: a bound made of bootstrapped returns would itself
    grow with the values it should hold. SB3's values look beyond a time limit, so an episode that was cut off
    counts as if it went on forever at its mean reward.

    :param episodes: Rewards of each episode, and whether it was cut off
    :param gamma: Discount factor
    :return: Lowest and highest credible value
    """
    returns = []
    for rewards, cut_off in episodes:
        future = float(rewards.mean()) / (1 - gamma) if cut_off and gamma < 1 else 0.0
        returns.append(discounted_returns(rewards, gamma, future))
    all_returns = np.concatenate(returns)
    low, high = float(all_returns.min()), float(all_returns.max())
    margin = VALUE_MARGIN * (high - low)
    return low - margin, high + margin


def transitions_for_returns(gamma: float) -> int:
    """
    :param gamma: Discount factor
    :return: Number of steps of one environment that returns are known from
    """
    return min(MAX_RETURN_STEPS, math.ceil(RETURN_HORIZONS / max(1 - gamma, 1e-9)))


def bound_values(
    buffer: RolloutBuffer,
    rewards: np.ndarray,
    cut_off: np.ndarray,
    last_values: th.Tensor,
    dones: np.ndarray,
    value_range: tuple[float, float],
    gamma: float,
) -> None:
    """
    Estimate the advantages and returns of the real rows anew, with values within a credible range. The first
    states of a new behaviour lie far from all that the critic was trained on, and its values there can be far from
    any return: they must not become targets either.

    :param buffer: The algorithm's rollout buffer, not yet flattened
    :param rewards: Rewards of the rollout in the critic's units, shape (n_steps, n_envs)
    :param cut_off: Whether a time limit cut off the episode, shape (n_steps, n_envs)
    :param last_values: Values of the states after the last step
    :param dones: Whether the last step ended an episode
    :param value_range: Lowest and highest credible value
    :param gamma: Discount factor of the algorithm at present. The buffer keeps to the one that it was made with
    """
    low, high = value_range
    # SB3 has added the discounted value of the last state to the reward of each episode that a time limit cut off
    added = buffer.rewards - rewards
    bounded = np.clip(added, gamma * low, gamma * high)
    np.copyto(buffer.rewards, rewards + bounded, where=cut_off & (bounded != added))
    values = buffer.values
    buffer.values = np.clip(values, low, high)
    buffer.compute_returns_and_advantage(last_values.clamp(low, high), dones)
    np.clip(buffer.returns, low, high, out=buffer.returns)
    # PPO clips the change of the values (`clip_range_vf`) from what the critic really said
    buffer.values = values

"""Returns and advantages of real and imagined transitions, within what real rewards make credible."""

import math

import numpy as np
import torch as th

from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer

# The range of real returns, widened by this share of its width, bounds all values and value targets
VALUE_MARGIN = 0.25
UNKNOWN_RANGE = (-math.inf, math.inf)


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


def generalized_advantages(
    rewards: th.Tensor, terminations: th.Tensor, values: th.Tensor, gamma: float, gae_lambda: float
) -> th.Tensor:
    """
    Generalised advantage estimation (arXiv 1506.02438) over segments, bootstrapped with the value of their last state.

    :param rewards: Shape (B, H)
    :param terminations: Shape (B, H)
    :param values: Shape (B, H + 1)
    :param gamma: Discount factor
    :param gae_lambda: Trade-off between bias and variance
    :return: Advantages, shape (B, H)
    """
    continues = 1 - terminations.to(values)
    errors = rewards + gamma * continues * values[:, 1:] - values[:, :-1]
    advantages = th.empty_like(errors)
    following = th.zeros_like(errors[:, 0])
    for step in reversed(range(errors.shape[1])):
        following = errors[:, step] + gamma * gae_lambda * continues[:, step] * following
        advantages[:, step] = following
    return advantages


def real_advantages(buffer: AugmentedRolloutBuffer) -> np.ndarray:
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

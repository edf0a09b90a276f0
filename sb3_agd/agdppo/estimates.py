"""Rewards, values and advantages of the real rows."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer
from sb3_agd.imagination import Imagination
from sb3_agd.imagination.rollout_rows import evaluated_actions
from sb3_agd.imagination.value_bounds import bound_values


def values_at_time_limits(imagination: Imagination) -> Iterator[tuple[tuple[int, int], float]]:
    """
    :param imagination: World model and data
    :return: Step and environment of each real row whose episode a time limit ended, and the discounted value that the present
        critic gives the last state, which SB3 adds to the reward
    """
    policy = imagination.model.policy
    for row, observation in imagination.recorder.cut_off_observations:
        yield row, imagination.model.gamma * policy.predict_values(policy.obs_to_tensor(observation)[0]).item()


@th.no_grad()
def take_over_rewards(imagination: Imagination, buffer: AugmentedRolloutBuffer) -> None:
    """
    Other callbacks may have changed rewards in place after they were recorded, by an exploration bonus for example. Such
    rewards are learned from in each round.

    :param imagination: World model and data
    :param buffer: The algorithm's rollout buffer, not yet flattened, with the policy that collected it
    """
    recorded, rewards = imagination.recorder.rewards, buffer.rewards.copy()
    for row, value in values_at_time_limits(imagination):
        rewards[row] -= value
        step, env = row
        if np.isclose(rewards[row], recorded[step][env], rtol=1e-4, atol=1e-4):
            # Unchanged but for rounding
            rewards[row] = recorded[step][env]
    imagination.recorder.rewards = [*rewards]


def bound_estimates(
    imagination: Imagination, buffer: AugmentedRolloutBuffer, last_values: th.Tensor, dones: np.ndarray
) -> None:
    """
    Keep values, advantages and returns within what is attainable, see :func:`bound_values`.

    :param imagination: World model and data
    :param buffer: The algorithm's rollout buffer, not yet flattened
    :param last_values: Values of the states after the last step
    :param dones: Whether the last step ended an episode
    """
    rewards = np.stack(imagination.recorder.rewards)
    bound_values(buffer, rewards, last_values, dones, imagination.state.value_range, imagination.model.gamma)


@th.no_grad()
def renew_estimates(imagination: Imagination, buffer: AugmentedRolloutBuffer) -> None:
    """
    Take the old log-probabilities, values and advantages of the real rows from the present policy. Those of the policy
    that collected them are stale after the updates of earlier rounds: most of the rows would be outside of PPO's clip
    range from the start.

    :param imagination: World model and data
    :param buffer: The algorithm's rollout buffer, flattened
    """
    model = imagination.model
    policy, dones = model.policy, model._last_episode_starts
    assert model._last_obs is not None and dones is not None
    policy.set_training_mode(False)
    actions = th.as_tensor(buffer.actions, device=model.device).float()
    values, log_probs = evaluated_actions(model, obs_as_tensor(buffer.observations, model.device), actions)
    last_values = policy.predict_values(obs_as_tensor(model._last_obs, model.device)).flatten()
    buffer.rewards = np.stack(imagination.recorder.rewards)
    for row, value in values_at_time_limits(imagination):
        buffer.rewards[row] += value
    buffer.replace_estimates(values, log_probs, partial(bound_estimates, imagination, buffer, last_values, dones))

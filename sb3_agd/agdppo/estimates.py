"""Estimates of the real rows by the policy of a later round."""

from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer
from sb3_agd.imagination import Imagination
from sb3_agd.imagination.rollout_rows import evaluated_actions


@th.no_grad()
def renew_estimates(imagination: Imagination, buffer: AugmentedRolloutBuffer) -> None:
    """
    Take the old log-probabilities, values and advantages of the real rows from the present policy. Those of the policy
    that collected them are stale after the updates of earlier rounds: most of the rows would be outside of PPO's clip
    range from the start.

    :param imagination: World model and data
    :param buffer: The algorithm's rollout buffer, flattened
    """
    model, recorder = imagination.model, imagination.recorder
    policy, dones = model.policy, model._last_episode_starts
    assert model._last_obs is not None and dones is not None
    policy.set_training_mode(False)
    actions = th.as_tensor(buffer.actions, device=model.device).float()
    values, log_probs = evaluated_actions(model, obs_as_tensor(buffer.observations, model.device), actions)
    last_values = policy.predict_values(obs_as_tensor(model._last_obs, model.device)).flatten()
    buffer.rewards = np.stack(recorder.rewards)
    for row, observation in recorder.cut_off_observations:
        # As SB3 does it after the step, with the critic of that time
        value = policy.predict_values(policy.obs_to_tensor(observation)[0]).item()
        buffer.rewards[row] += model.gamma * value
    buffer.replace_estimates(values, log_probs, partial(imagination.bound_values, buffer, last_values, dones))

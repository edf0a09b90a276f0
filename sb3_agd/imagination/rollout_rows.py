"""From imagined segments to rows of the rollout buffer."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd.experience.space_codecs import Observations, map_parts
from sb3_agd.imagination.policy_adapter import PolicyAdapter
from sb3_agd.world_model import Segments


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


def evaluated_actions(model: OnPolicyAlgorithm, observations: Observations, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param model: The algorithm
    :param observations: As the policy sees them, N of them
    :param actions: As the rollout buffer stores them, shape (N, action_dim)
    :return: Values of the observations and log-probabilities of the actions by the present policy, each of shape (N,)
    """
    evaluated = actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else actions
    # SB3's policies take dictionaries, too
    policy: Any = model.policy
    values, log_probs, _ = policy.evaluate_actions(observations, evaluated)
    return values.flatten(), log_probs


@th.no_grad()
def rollout_rows(
    agent: PolicyAdapter, segments: Segments[th.Tensor], actions: th.Tensor, value_range: tuple[float, float]
) -> RolloutBufferSamples:
    """
    Values, log-probabilities and GAE of imagined segments by the current policy and critic.

    :param agent: The policy and the critic
    :param segments: In raw units
    :param actions: Their actions as the rollout buffer stores them, shape (B, H, action_dim)
    :param value_range: Lowest and highest attainable value
    :return: One row per transition that is not masked
    """
    model = agent.model
    batch, horizon = segments.rewards.shape
    observations = agent.policy_observations(segments.observations[:, :-1])
    last_observations = agent.policy_observations(segments.observations[:, -1])
    actions = actions.flatten(0, 1)
    values, log_probs = evaluated_actions(model, observations, actions)
    last_values = model.policy.predict_values(last_observations)
    all_values = th.cat([values.view(batch, horizon), last_values.view(batch, 1)], dim=1).clamp(*value_range)
    # SB3 keeps to the discount factor that the rollout buffer was made with
    buffer = model.rollout_buffer
    rewards = agent.rewards(segments.rewards)
    advantages = generalized_advantages(rewards, segments.terminations, all_values, buffer.gamma, buffer.gae_lambda)
    returns = (advantages + all_values[:, :-1]).clamp(*value_range)
    kept = (segments.mask & returns.isfinite()).flatten() & log_probs.isfinite()
    columns = (observations, actions, values, log_probs, advantages.flatten(), returns.flatten())
    return RolloutBufferSamples(*(map_parts(lambda column: column[kept], column) for column in columns))

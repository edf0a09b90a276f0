"""The agent as the world model sees it: its policy with fixed noise, and its critic on raw observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_agd.experience.space_codecs import DictCodec, Observations, OneHotCodec, SpaceCodec, VectorCodec
from sb3_agd.experience.vec_normalize import Normalization

# Keeps the logarithms of uniform noise finite
TINY = 1e-20
# Those that actions can be drawn from with given noise
DISTRIBUTIONS = (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)


def check_distribution(policy: ActorCriticPolicy) -> None:
    """
    :param policy: A policy
    :raises ValueError: If imagination cannot draw actions from its distribution
    """
    if not isinstance(policy.action_dist, DISTRIBUTIONS):
        known = ", ".join(distribution.__name__ for distribution in DISTRIBUTIONS)
        raise ValueError(
            f"The action distribution {type(policy.action_dist).__name__} of {type(policy).__name__} is not supported: it "
            f"must be one of {known}, or a subclass"
        )


def has_own_distribution(policy: ActorCriticPolicy) -> bool:
    """
    :param policy: A policy
    :return: Whether it makes its distribution of actions in another way than SB3's policies, to mask actions for example
    """
    if type(policy.action_dist) not in (*DISTRIBUTIONS, SquashedDiagGaussianDistribution):
        return True
    names = ("get_distribution", "_get_action_dist_from_latent")
    return any(
        name in vars(policy) or getattr(type(policy), name, None) is not getattr(ActorCriticPolicy, name) for name in names
    )


def action_parameters(policy: ActorCriticPolicy, observations: Observations) -> tuple[th.Tensor, th.Tensor]:
    """
    Parameters of the distribution of actions. SB3's policies are asked for them without a distribution, whose check of its
    parameters would wait for a GPU at each imagined step.

    :param policy: A policy
    :param observations: As the policy sees them, N of them
    :return: Means or logits, shape (N, action_size), and for means what the noise is multiplied with: the features of gSDE,
        or standard deviations
    """
    if has_own_distribution(policy):
        distribution: Any = policy.get_distribution(observations)
        inner = distribution.distribution
        if isinstance(distribution, MultiCategoricalDistribution):
            return th.cat([part.logits for part in inner], dim=-1), inner[0].logits
        if isinstance(inner, th.distributions.Normal):
            return inner.mean, getattr(distribution, "_latent_sde", inner.stddev)
        return inner.logits, inner.logits
    features = BaseModel.extract_features(policy, observations, policy.pi_features_extractor)
    latent = policy.mlp_extractor.forward_actor(features)
    is_gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
    return policy.action_net(latent), policy.log_std.exp() if is_gaussian else latent


class PolicyAdapter:
    """
    The actor and the critic of an SB3 on-policy algorithm as functions of the world model's observation vectors.
    They see imagined states exactly as they see real ones, VecNormalize included.

    :param model: The algorithm
    :param observation_codec: Codec of its observation space
    :param action_codec: Codec of its action space
    :param normalization: Normalisation between environment and agent, if there is one
    """

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        observation_codec: SpaceCodec,
        action_codec: SpaceCodec,
        normalization: Normalization | None,
    ):
        self.model = model
        self.observation_codec = observation_codec
        self.action_codec = action_codec
        self.normalization = normalization
        # Once for all calls: they come in a loop that is not to wait for a GPU
        if normalization is not None and normalization.observations is not None:
            columns = normalization.observation_columns(observation_codec)
            self._shift, self._scale, self._clip = (th.as_tensor(array, device=model.device) for array in columns)

    def policy_observations(self, vectors: th.Tensor) -> Observations:
        """
        :param vectors: Observation vectors in raw units, shape (..., size)
        :return: The same as the policy sees them, before SB3's preprocessing, shape (N, *observation_shape), or a dictionary
        """
        observations = self.observation_codec.decode(vectors.reshape(-1, self.observation_codec.size))
        return self.observation_codec.shaped(self._normalize(observations))

    def _normalize(self, observations: th.Tensor) -> th.Tensor:
        """
        VecNormalize's ``normalize_obs``, differentiable.

        :param observations: Flattened, shape (N, prod(observation_shape))
        :return: Same shape
        """
        ours = self.normalization
        if ours is not None and ours.observations is not None:
            standardised = (observations - self._shift) / self._scale
            observations = th.clamp(standardised, -self._clip, self._clip).float()
        return observations

    def rewards(self, rewards: th.Tensor) -> th.Tensor:
        """
        VecNormalize's ``normalize_reward``, differentiable.

        :param rewards: In raw units, any shape
        :return: Rewards in the critic's units, same shape
        """
        ours = self.normalization
        if ours is None or ours.returns is None:
            return rewards
        scale = float(np.sqrt(ours.returns.var + ours.epsilon))
        return th.clamp(rewards / scale, -ours.clip_reward, ours.clip_reward)

    def values(self, vectors: th.Tensor) -> th.Tensor:
        """
        The critic on observation vectors, differentiable for every space: where a gradient is asked for, vectors of
        discrete observations may lie between one-hot codes.

        :param vectors: In raw units, shape (N, size)
        :return: Values, shape (N,)
        """
        policy = self.model.policy
        if not th.is_grad_enabled():
            return policy.predict_values(self.policy_observations(vectors)).flatten()
        codec = self.observation_codec
        if isinstance(codec, VectorCodec):
            return policy.predict_values(codec.shaped(self._normalize(vectors))).flatten()
        features = policy.vf_features_extractor(self._parts(codec, vectors) if isinstance(codec, DictCodec) else vectors)
        return policy.value_net(policy.mlp_extractor.forward_critic(features)).flatten()

    def _parts(self, codec: DictCodec, vectors: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param codec: Codec of the observation space
        :param vectors: Observation vectors in raw units, shape (N, size)
        :return: The same after SB3's preprocessing, differentiable: discrete parts as vectors
        """
        parts = codec.split(vectors)
        discrete = {key: part for key, part in parts.items() if isinstance(codec.codecs[key], OneHotCodec)}
        elements = [codec.codecs[key].decode(part) if key in discrete else part for key, part in parts.items()]
        return codec.shaped(self._normalize(th.cat(elements, dim=-1))) | discrete


class FixedNoisePolicy:
    """
    The current policy with its noise drawn once per segment and step, so that an action moves only because the
    imagined state moves. At any state the action is an exact sample of the policy, for every distribution of SB3's
    on-policy algorithms: Gaussian noise for continuous actions (with gSDE, one noise matrix per segment, or for each
    ``sde_sample_freq`` steps of it), Gumbel and logistic noise for discrete ones.

    :param agent: The agent
    :param n_segments: Number of segments, B
    :param horizon: Number of transitions of a segment, H
    :param generator: Source of the noise
    """

    def __init__(self, agent: PolicyAdapter, n_segments: int, horizon: int, generator: th.Generator):
        self.agent = agent
        self.batch = (n_segments, horizon)
        policy = agent.model.policy
        distribution = policy.action_dist
        action_size = agent.action_codec.size
        if isinstance(distribution, StateDependentNoiseDistribution):
            frequency = agent.model.sde_sample_freq
            # Which noise matrix counts at each step
            self._matrices = th.arange(horizon) // (frequency if frequency > 0 else horizon)
            shape: tuple[int, ...] = (n_segments, int(self._matrices[-1]) + 1, policy.log_std.shape[0], action_size)
        else:
            shape = (n_segments, horizon, action_size)
        if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
            noise = th.randn(shape, generator=generator, device=generator.device)
        else:
            uniform = th.rand(shape, generator=generator, device=generator.device).clamp(TINY, 1 - 1e-7)
            bernoulli = isinstance(distribution, BernoulliDistribution)
            noise = th.logit(uniform) if bernoulli else -th.log(-th.log(uniform))
        self.noise = noise
        space = agent.model.action_space
        if isinstance(space, spaces.Box):
            # Spaces may be in double precision, agents are not
            self._low, self._high = (th.as_tensor(bound.reshape(-1)).to(noise) for bound in (space.low, space.high))
        # The newest action of each step as SB3's rollout buffer stores it
        self.actions = th.empty(*self.batch, get_action_dim(space), device=noise.device)

    @th.no_grad()
    def sample(self, observations: Observations, steps: slice) -> th.Tensor:
        """
        :param observations: As the policy sees them, shape (B * n, *observation_shape), or a dictionary
        :param steps: Which n steps of the segments they belong to
        :return: Actions as SB3's rollout buffer stores them, shape (B * n, action_dim)
        """
        policy = self.agent.model.policy
        outputs, scale = action_parameters(policy, observations)
        distribution = policy.action_dist
        if isinstance(distribution, StateDependentNoiseDistribution):
            features = scale.view(len(self.noise), -1, self.noise.shape[2])
            std = distribution.get_std(policy.log_std)
            matrices, lengths = (part.tolist() for part in self._matrices[steps].unique_consecutive(return_counts=True))
            runs = zip(matrices, features.split(lengths, dim=1), strict=True)
            exploration = th.cat([th.bmm(part, self.noise[:, matrix] * std) for matrix, part in runs], dim=1)
            actions = outputs + exploration.flatten(0, 1)
            return actions if distribution.bijector is None else distribution.bijector.forward(actions)
        noise = self.noise[:, steps].flatten(0, 1)
        if isinstance(distribution, DiagGaussianDistribution):
            actions = outputs + scale * noise
            return th.tanh(actions) if isinstance(distribution, SquashedDiagGaussianDistribution) else actions
        if isinstance(distribution, BernoulliDistribution):
            return (outputs + noise > 0).float()
        # Gumbel noise: the largest is a sample, whether or not the logits are normalised
        sizes = distribution.action_dims if isinstance(distribution, MultiCategoricalDistribution) else [outputs.shape[-1]]
        choices = [part.argmax(-1) for part in (outputs + noise).split(sizes, dim=-1)]
        return th.stack(choices, dim=-1).float()

    def environment_actions(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: As SB3's rollout buffer stores them, shape (N, action_dim)
        :return: As the environment receives them, shape (N, prod(action_shape))
        """
        if not isinstance(self.agent.model.action_space, spaces.Box):
            return actions
        if self.agent.model.policy.squash_output:
            return self._low + 0.5 * (actions + 1.0) * (self._high - self._low)
        return th.clamp(actions, self._low, self._high)

    def __call__(self, states: th.Tensor, steps: slice) -> th.Tensor:
        """
        :param states: Observation vectors in raw units, shape (B, n, observation_size)
        :param steps: Which n steps of the segments they belong to
        :return: Action vectors in raw units, shape (B, n, action_size)
        """
        buffered = self.sample(self.agent.policy_observations(states), steps)
        self.actions[:, steps] = buffered.view(*states.shape[:2], -1)
        actions = self.agent.action_codec.vectors(self.environment_actions(buffered))
        return actions.view(*states.shape[:2], -1)

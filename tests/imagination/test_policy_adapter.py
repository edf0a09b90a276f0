"""Imagined actions and values are those of the policy and the critic."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, SPACES, ToyEnv
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_agd import AGDPPO
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.imagination.policy_adapter import FixedNoisePolicy


@pytest.mark.parametrize("action_space", [*SPACES[:2], spaces.Box(np.array([-3.0, 10.0]), np.array([1.0, 20.0])), *SPACES[3:]])
def test_imagined_actions_are_what_the_environment_would_receive(action_space: spaces.Space) -> None:
    env = ToyEnv(action_space=action_space)
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    segments = model.imagine(np.zeros((50, 3), dtype=np.float32))
    assert segments.actions.dtype == action_space.dtype
    for action in segments.actions.reshape(-1, *action_space.shape):
        assert action_space.contains(action.astype(action_space.dtype))


@pytest.mark.parametrize("use_sde", [False, True])
def test_standardised_imagined_actions_are_standard_normal(use_sde: bool) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", use_sde=use_sde, **SMALL | {"policy_kwargs": {"net_arch": [64]}}).learn(64)
    imagination = model.imagination
    starts = th.as_tensor(np.random.default_rng(0).normal(size=(4000, 3)), dtype=th.float32)
    segments, actions = imagination.imagine(starts, NO_GUIDANCE, imagination.generator(0))
    observations = imagination.agent.policy_observations(segments.observations[:, :-1])
    with th.no_grad():
        distribution = model.policy.get_distribution(observations).distribution
        standardised = ((actions.flatten(0, 1) - distribution.mean) / distribution.stddev).view(4000, -1)
    # Mean and standard deviation over segments at each step: five standard errors
    assert standardised.mean(0).abs().max() < 5 / np.sqrt(4000)
    assert (standardised.std(0) - 1).abs().max() < 5 / np.sqrt(2 * 4000)


@pytest.mark.parametrize("action_space", [SPACES[0], *SPACES[3:]], ids=str)
def test_a_policy_that_is_not_finite_does_not_imagine(action_space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(action_space=action_space), **SMALL).learn(64)
    with th.no_grad():
        model.policy.action_net.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="invalid values"):
        model.imagine(np.zeros((5, 3)))


class Convolution(BaseFeaturesExtractor):
    """Wants observations in their own shape."""

    def __init__(self, observation_space: spaces.MultiBinary):
        n_rows, n_columns = observation_space.shape
        super().__init__(observation_space, 4 * n_columns)
        self.layers = nn.Sequential(nn.Conv1d(n_rows, 4, 1), nn.Flatten())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
def test_extractors_get_binary_observations_in_their_own_shape(guidance_mode: str) -> None:
    policy_kwargs = {"net_arch": [16], "features_extractor_class": Convolution}
    settings = SMALL | {"policy_kwargs": policy_kwargs, "guidance_mode": guidance_mode}
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.MultiBinary((2, 3))), **settings).learn(64)
    segments = model.imagine(np.zeros((2, 2, 3)), guidance_scale=1.0)
    assert segments.observations.shape == (2, SMALL["horizon"] + 1, 6)


def test_imagination_leaves_the_checks_of_distributions_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a switch of the whole process: other threads may train other models meanwhile."""
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    forward, switches = MlpExtractor.forward_actor, []

    def watched(extractor: MlpExtractor, features: th.Tensor) -> th.Tensor:
        switches.append(th.distributions.Distribution._validate_args)
        return forward(extractor, features)

    monkeypatch.setattr(MlpExtractor, "forward_actor", watched)
    model.imagine(np.zeros((1, 3)))
    assert len(switches) > SMALL["horizon"] and all(switches)


class MaskedPolicy(ActorCriticPolicy):
    """Never takes the first action, by a distribution of its own."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi)
        logits[..., 0] = -1e9
        return self.action_dist.proba_distribution(logits)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])])
def test_a_policy_with_a_distribution_of_its_own_is_asked_for_it(space: spaces.Space) -> None:
    model = AGDPPO(MaskedPolicy, ToyEnv(action_space=space), **SMALL).learn(64)
    first = model.imagine(np.zeros((100, 3))).actions[..., 0]
    assert set(first.flatten().tolist()) == {1, 2}


class CautiousPolicy(ActorCriticPolicy):
    """Computes its standard deviation, here always 0.1, rather than taking it from ``log_std``."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        mean = self.action_net(latent_pi)
        return self.action_dist.proba_distribution(mean, th.full_like(mean, float(np.log(0.1))))


def test_imagined_actions_have_the_standard_deviation_of_a_distribution_of_its_own() -> None:
    model = AGDPPO(CautiousPolicy, ToyEnv(), **SMALL).learn(64)
    policy = FixedNoisePolicy(model.imagination.agent, 5000, 2, th.Generator().manual_seed(0))
    policy(th.zeros(5000, 2, 3), slice(0, 2))
    assert policy.actions.flatten(0, 1).std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.05)


class CautiousDistribution(DiagGaussianDistribution):
    """Limits the standard deviation to 0.1."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "CautiousDistribution":
        super().proba_distribution(mean_actions, log_std.clamp(max=float(np.log(0.1))))
        return self


def test_imagined_actions_come_from_a_subclass_of_a_distribution() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    model.policy.action_dist = CautiousDistribution(2)
    policy = FixedNoisePolicy(model.imagination.agent, 5000, 2, th.Generator().manual_seed(0))
    policy(th.zeros(5000, 2, 3), slice(0, 2))
    assert policy.actions.flatten(0, 1).std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.05)


def test_discrete_imagined_actions_follow_the_probabilities_of_the_policy() -> None:
    model = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([0.0, 1.0]))
    agent = model.imagination.agent
    policy = FixedNoisePolicy(agent, 5000, 2, th.Generator().manual_seed(0))
    vectors = th.zeros(5000, 2, 4)
    policy(vectors, slice(0, 2))
    expected = model.policy.get_distribution(th.zeros(1, 4)).distribution.probs[0, 1].item()
    assert policy.actions.mean().item() == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(10_000))


def test_the_critic_sees_imagined_states_and_rewards_as_it_sees_real_ones() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(128)
    agent = model.imagination.agent
    raw = np.array([[1.0, 0.0, 2.0], [0.3, -0.8, -7.0]], dtype=np.float32)
    with th.no_grad():
        expected = model.policy.predict_values(th.as_tensor(env.normalize_obs(raw))).flatten()
        assert th.allclose(agent.values(th.as_tensor(raw)), expected, atol=1e-6)
    rewards = np.array([-5.0, 0.0, 1e9], dtype=np.float32)
    assert np.allclose(agent.rewards(th.as_tensor(rewards)).numpy(), env.normalize_reward(rewards), rtol=1e-6)
    assert np.allclose(agent.policy_observations(th.as_tensor(raw)).numpy(), env.normalize_obs(raw), atol=1e-6)


def test_discrete_observations_are_guided_through_relaxed_one_hot_codes() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.Discrete(4)), **SMALL)
    codes = th.eye(4).requires_grad_()
    values = model.imagination.agent.values(codes)
    with th.no_grad():
        assert th.allclose(values, model.policy.predict_values(th.arange(4)).flatten())
    assert th.autograd.grad(values.sum(), codes)[0].abs().sum() > 0


class SquashedPolicy(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.action_dist = SquashedDiagGaussianDistribution(self.action_space.shape[0])


def test_squashed_actions_are_imagined_within_the_box() -> None:
    model = AGDPPO(SquashedPolicy, ToyEnv(action_space=spaces.Box(-1, 1, (6,))), **SMALL).learn(64)
    buffer = model.rollout_buffer
    assert buffer.n_imagined == 64 and buffer.imagined is not None
    assert buffer.imagined.actions.abs().max() < 1


def test_an_action_distribution_that_cannot_be_imagined_is_refused_at_construction_by_name() -> None:
    class Laplace:
        """None of SB3's."""

    class LaplacePolicy(ActorCriticPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.action_dist = Laplace()

    with pytest.raises(ValueError, match=r"distribution Laplace of LaplacePolicy .* DiagGaussianDistribution"):
        AGDPPO(LaplacePolicy, ToyEnv(), **SMALL)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (3,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
)
def test_guides_ask_the_policy_itself_for_values(space: spaces.Space) -> None:
    class Scaled(ActorCriticPolicy):
        def predict_values(self, obs: Any) -> th.Tensor:
            return 100 * super().predict_values(obs)

    model = AGDPPO(Scaled, ToyEnv(space), **SMALL)
    observations = np.stack([space.sample() for _ in range(4)])
    with th.no_grad():
        expected = model.policy.predict_values(model.policy.obs_to_tensor(observations)[0]).flatten()
        vectors = th.as_tensor(model.imagination.observation_codec.encode(observations))
        assert th.allclose(model.imagination.agent.values(vectors), expected)


def test_integer_actions_are_imagined_as_the_environment_receives_them() -> None:
    env = ToyEnv(action_space=spaces.Box(-3, 3, (2,), dtype=np.int64))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    # SB3 does not round them
    assert np.any(env.received[-1] % 1 != 0)
    actions = model.imagine(model.env.reset(), seed=0).actions
    assert np.any(actions % 1 != 0) and np.all(np.abs(actions) <= 3)


@pytest.mark.parametrize("sde_sample_freq, n_matrices", [(-1, 1), (1, 4), (3, 2)])
def test_imagined_gsde_noise_is_drawn_as_often_as_the_policys(sde_sample_freq: int, n_matrices: int) -> None:
    arguments = SMALL | {"policy_kwargs": {"net_arch": [16], "log_std_init": 0.0}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", use_sde=True, sde_sample_freq=sde_sample_freq, **arguments)
    noise = FixedNoisePolicy(model.imagination.agent, 3, 4, model.imagination.generator(0))
    state = np.tile(model.env.reset(), (3, 4, 1))
    actions = noise(th.from_numpy(state), slice(0, 4))
    one_by_one = [noise(th.from_numpy(state[:, step : step + 1]), slice(step, step + 1)) for step in range(4)]
    # In one state, all that changes an action is a new matrix
    assert all(len(set(segment.flatten().tolist())) == n_matrices for segment in noise.actions)
    th.testing.assert_close(actions, th.cat(one_by_one, dim=1))

"""What AGDPPO adds to PPO."""

import inspect
import itertools
import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EveryNTimesteps
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import explained_variance, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sb3_agd
from sb3_agd import (
    AGDPPO,
    AugmentedRolloutBuffer,
    DiffusionWorldModel,
    ExponentialAdvantageGuide,
    GuidanceCallback,
    Guide,
    RewardGuide,
    SigmoidAdvantageGuide,
)
from sb3_agd.agdppo.imagination import Imagination, states_along
from sb3_agd.agdppo.policy import FixedNoisePolicy
from sb3_agd.agdppo.returns import generalized_advantages
from sb3_agd.world_model import Critic, Segments
from sb3_agd.world_model.types import mask_after_termination

SPACES: list[spaces.Space] = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-2, 5, (2, 3)),
    spaces.Box(0, 9, (2,), dtype=np.int64),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]


class Recorder(KVWriter):
    """Keeps all that is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def test_exports_the_public_names() -> None:
    for name in sb3_agd.__all__:
        assert hasattr(sb3_agd, name)
    assert sb3_agd.__version__.count(".") == 2
    assert issubclass(AGDPPO, PPO)
    assert all(issubclass(guide, Guide) for guide in (SigmoidAdvantageGuide, ExponentialAdvantageGuide, RewardGuide))


def test_every_keyword_argument_is_an_attribute() -> None:
    arguments: dict[str, Any] = {
        "guidance": "eag",
        "guidance_scale": 0.7,
        "n_particles": 3,
        "horizon": 3,
        "synthetic_ratio": 5.0,
        "real_data_ratio": 0.3,
        "n_denoising_steps": 6,
        "sampler": "ddim",
        "world_model_gradient_steps": 7,
        "world_model_batch_size": 9,
        "world_model_learning_rate": 2e-3,
        "world_model_warmup": 11,
        "world_model_buffer_size": 1234,
        "world_model_kwargs": {"width": 8},
        "termination_fn": lambda observations, actions, next_observations: observations[:, 0] > 1,
    }
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **arguments)
    for name, value in arguments.items():
        assert getattr(model, name) == value
    assert isinstance(model.world_model, DiffusionWorldModel)


# Imagination


@pytest.mark.parametrize("observation_space", SPACES, ids=str)
def test_imagines_in_raw_units_for_every_observation_space(observation_space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(observation_space), **SMALL).learn(64)
    starts = np.stack([observation_space.sample() for _ in range(5)])
    segments = model.imagine(starts, seed=0)
    dim = int(np.prod(starts.shape[1:]))
    assert segments.observations.shape == (5, SMALL["horizon"] + 1, dim)
    assert np.array_equal(segments.observations[:, 0], starts.reshape(5, dim))
    assert segments.actions.shape == (5, SMALL["horizon"], 2)
    for array in (segments.rewards, segments.terminations, segments.mask):
        assert array.shape == (5, SMALL["horizon"])
    for observation in segments.observations.reshape(-1, *observation_space.shape):
        if not isinstance(observation_space, spaces.Box):
            assert observation_space.contains(observation.astype(observation_space.dtype))


@pytest.mark.parametrize("action_space", [*SPACES[:2], spaces.Box(np.array([-3.0, 10.0]), np.array([1.0, 20.0])), *SPACES[3:]])
def test_imagined_actions_are_what_the_environment_would_receive(action_space: spaces.Space) -> None:
    env = ToyEnv(action_space=action_space)
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    segments = model.imagine(np.zeros((50, 3), dtype=np.float32))
    assert segments.actions.dtype == action_space.dtype
    for action in segments.actions.reshape(-1, *action_space.shape):
        assert action_space.contains(action.astype(action_space.dtype))


def test_random_seeds_of_sb3_reach_imagination(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "model")
    starts = model.env.reset()
    model.set_random_seed(3)
    expected = model.imagine(starts).actions
    model.set_random_seed(3)
    assert np.array_equal(model.imagine(starts).actions, expected)
    for seed in (3, 4):
        loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu", seed=seed)
        assert np.array_equal(loaded.imagine(starts).actions, expected) == (seed == 3)


def test_imagination_with_a_seed_repeats_itself_and_without_does_not() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    starts = model.env.reset()
    first, second, third = model.imagine(starts, seed=3), model.imagine(starts, seed=3), model.imagine(starts)
    assert np.array_equal(first.observations, second.observations) and np.array_equal(first.actions, second.actions)
    assert not np.array_equal(first.actions, third.actions)


@pytest.mark.parametrize("guidance", ["sag", "eag", "reward"])
def test_guidance_moves_the_imagined_states_but_never_the_start(guidance: str) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"n_denoising_steps": 4, "n_particles": 1}).learn(200)
    starts = np.repeat(model.env.reset(), 20, axis=0)
    free = model.imagine(starts, guidance="none", seed=0)
    unmoved = model.imagine(starts, guidance=guidance, guidance_scale=0.0, seed=0)
    guided = model.imagine(starts, guidance=guidance, guidance_scale=3.0, seed=0)
    assert np.array_equal(free.observations, unmoved.observations)
    assert model.world_model.guidance_norm > 0
    assert not np.array_equal(free.observations, guided.observations)
    assert np.array_equal(guided.observations[:, 0], starts)


@pytest.mark.parametrize("n_particles", [1, 16])
def test_a_guide_of_ones_own_is_used(n_particles: int) -> None:
    class FirstDimension(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return segments.observations[..., 0].sum(1)

    # Unpredictable observations: there is something to choose from
    arguments = SMALL | {"world_model_gradient_steps": 100, "n_denoising_steps": 8, "n_particles": n_particles}
    model = AGDPPO("MlpPolicy", ToyEnv(), guidance=FirstDimension(), **arguments).learn(64)
    starts = np.zeros((200, 3), dtype=np.float32)
    guided = model.imagine(starts, guidance_scale=3.0, seed=0).observations[:, 1:, 0].mean()
    assert guided > 0.1 + model.imagine(starts, guidance="none", seed=0).observations[:, 1:, 0].mean()


@pytest.mark.parametrize("use_sde", [False, True])
def test_standardised_imagined_actions_are_standard_normal(use_sde: bool) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", use_sde=use_sde, **SMALL | {"policy_kwargs": {"net_arch": [64]}}).learn(64)
    imagination = model.imagination
    starts = th.as_tensor(np.random.default_rng(0).normal(size=(4000, 3)), dtype=th.float32)
    segments, actions = imagination.imagine(starts, None, 0.0, 1, imagination.generator(0))
    observations = imagination.agent.policy_observations(segments.observations[:, :-1])
    with th.no_grad():
        distribution = model.policy.get_distribution(observations).distribution
        standardised = ((actions.flatten(0, 1) - distribution.mean) / distribution.stddev).view(4000, -1)
    # Mean and standard deviation over segments at each step: five standard errors
    assert standardised.mean(0).abs().max() < 5 / np.sqrt(4000)
    assert (standardised.std(0) - 1).abs().max() < 5 / np.sqrt(2 * 4000)


class FewTerminations(Guide):
    """Whole numbers, as users may write them."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return -segments.terminations.sum(1)


class EachStep(Guide):
    """Forgets to sum."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return critic.advantages(segments)


def test_candidates_may_be_chosen_by_whole_numbers() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(terminates=True), guidance=FewTerminations(), **SMALL).learn(64)
    model.imagination.state.critic_trust = 1.0
    model.imagination.augment(model.rollout_buffer, FewTerminations(), 1.0, 4, 64)
    starts = np.zeros((500, 3))
    ends = [model.imagine(starts, guidance_scale=scale, seed=0).terminations.mean() for scale in (0.0, 10.0)]
    assert ends[1] < ends[0]


@pytest.mark.parametrize("n_particles", [1, 4])
def test_an_objective_of_the_wrong_shape_is_refused(n_particles: int) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"n_particles": n_particles}).learn(64)
    with pytest.raises(ValueError, match=r"objective of EachStep must have one number per segment, shape \(\d+,\), not"):
        model.imagine(np.zeros((2, 3)), EachStep(), 1.0)


@pytest.mark.parametrize("action_space", [SPACES[0], *SPACES[3:]], ids=str)
def test_a_policy_that_is_not_finite_does_not_imagine(action_space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(action_space=action_space), **SMALL).learn(64)
    with th.no_grad():
        model.policy.action_net.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="invalid values"):
        model.imagine(np.zeros((5, 3)))


def test_guidance_that_cannot_move_states_is_refused_also_where_it_is_given_later() -> None:
    settings = SMALL | {"n_particles": 1, "n_denoising_steps": 1}
    model = AGDPPO("MlpPolicy", ToyEnv(), guidance="none", **settings).learn(64)
    model.imagine(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="`n_denoising_steps` must be at least 2"):
        model.imagine(np.zeros((2, 3)), guidance="sag")


class Convolution(BaseFeaturesExtractor):
    """Wants observations in their own shape."""

    def __init__(self, observation_space: spaces.MultiBinary):
        n_rows, n_columns = observation_space.shape
        super().__init__(observation_space, 4 * n_columns)
        self.layers = nn.Sequential(nn.Conv1d(n_rows, 4, 1), nn.Flatten())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


@pytest.mark.parametrize("n_particles", [1, 4])
def test_extractors_get_binary_observations_in_their_own_shape(n_particles: int) -> None:
    policy_kwargs = {"net_arch": [16], "features_extractor_class": Convolution}
    settings = SMALL | {"policy_kwargs": policy_kwargs, "n_particles": n_particles}
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.MultiBinary((2, 3))), **settings).learn(64)
    segments = model.imagine(np.zeros((2, 2, 3)), guidance_scale=1.0)
    assert segments.observations.shape == (2, SMALL["horizon"] + 1, 6)


class SumOfActions(Guide):
    """Prefers segments for their actions."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return segments.actions.sum((1, 2))


def test_actions_that_are_learned_from_are_the_policys_own_also_under_guidance() -> None:
    """Learned from, the actions of chosen segments would raise the noise of the policy and the values of the critic."""
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    imagination, n_rows = model.imagination, 4000
    imagination.state.critic_trust = 1.0

    def mean_noise(observations: th.Tensor, actions: th.Tensor) -> float:
        with th.no_grad():
            distribution = model.policy.get_distribution(observations).distribution
        return ((actions - distribution.mean) / distribution.stddev).mean().item()

    imagination.augment(model.rollout_buffer, SumOfActions(), 3.0, 4, n_rows)
    rows = model.rollout_buffer.imagined
    assert abs(mean_noise(rows.observations, rows.actions)) < 5 / np.sqrt(n_rows)
    # The guide was strong enough to be seen
    starts = th.zeros(n_rows // SMALL["horizon"], 3)
    chosen, actions = imagination.imagine(starts, SumOfActions(), 3.0, 4, imagination.generator(0))
    assert mean_noise(chosen.observations[:, :-1].flatten(0, 1), actions.flatten(0, 1)) > 0.3


@pytest.mark.parametrize("n_particles", [1, 4])
def test_guidance_leads_to_the_states_that_imagination_goes_on_from(n_particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    imagination, calls = model.imagination, []
    imagination.state.critic_trust = 1.0
    imagine = imagination.imagine

    def recorded(starts: th.Tensor, guide: Guide | None, *rest: Any) -> Any:
        segments, actions = imagine(starts, guide, *rest)
        calls.append((starts, guide, segments))
        return segments, actions

    monkeypatch.setattr(imagination, "imagine", recorded)
    imagination.augment(model.rollout_buffer, SigmoidAdvantageGuide(), 1.0, n_particles, 2000)
    assert [guide is None for _, guide, _ in calls] == ([False] if n_particles == 1 else [False, True])
    if n_particles > 1:
        chosen, (starts, *_) = calls[0][2].observations, calls[1]
        same = (chosen == starts[:, None]).all(2)
        # One of each segment, from the first to the last, and as often from each step
        assert same.any(1).all()
        shares = same.float().mean(0)
        assert (shares - 1 / same.shape[1]).abs().max() < 5 * np.sqrt(0.25 / len(same))
    # Without trust in the critic, there is no guidance
    calls.clear()
    imagination.state.critic_trust = 0.0
    imagination.augment(model.rollout_buffer, SigmoidAdvantageGuide(), 1.0, n_particles, 16)
    assert len(calls) == 1


def test_imagination_does_not_go_on_from_the_end_of_an_episode() -> None:
    terminations = th.tensor([[False, True, False], [False, False, True], [True, False, False], [False, False, False]])
    steps = th.arange(4.0).expand(4, 4)[..., None]
    segments = Segments(steps, th.zeros(4, 3, 1), th.zeros(4, 3), terminations, mask_after_termination(terminations))
    generator = th.Generator().manual_seed(0)
    drawn = th.stack([states_along(segments, generator) for _ in range(200)]).squeeze(2)
    for index, last in enumerate([1, 2, 0, 3]):
        assert set(drawn[:, index].tolist()) == set(range(last + 1))


class NoWaiting(TorchDispatchMode):
    """Fails where a number is read out of a tensor, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        # The schedule of the sampler is made on the CPU, in double precision
        if func is th.ops.aten._local_scalar_dense.default and args[0].dtype is not th.float64:
            raise AssertionError("A number was read out of a tensor")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_particles", [1, 4])
@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (2,)), *SPACES[3:]], ids=str)
@pytest.mark.parametrize("sampler", ["flow", "ddpm"])
def test_sampling_does_not_wait_for_results(
    sampler: str, action_space: spaces.Space, n_particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(action_space=action_space), sampler=sampler, **SMALL).learn(64)
    imagine, calls = DiffusionWorldModel.imagine, []

    def strict(*arguments: Any) -> Any:
        with NoWaiting():
            calls.append(imagine(*arguments))
        return calls[-1]

    monkeypatch.setattr(DiffusionWorldModel, "imagine", strict)
    imagination = model.imagination
    imagination.imagine(th.zeros(8, 3), SigmoidAdvantageGuide(), 1.0, n_particles, imagination.generator(0))
    assert len(calls) == 1


def test_distributions_check_their_parameters_outside_of_imagination() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    model.imagine(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="invalid values"):
        th.distributions.Normal(th.zeros(1), -th.ones(1))


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


def test_a_known_termination_rule_replaces_the_learned_one() -> None:
    seen = []

    def always(observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        seen.append((observations.shape, actions.shape, next_observations.shape))
        return np.ones(len(observations), dtype=bool)

    model = AGDPPO("MlpPolicy", ToyEnv(), termination_fn=always, n_particles=1, **SMALL).learn(64)
    segments = model.imagine(np.zeros((6, 3), dtype=np.float32))
    assert segments.terminations.all()
    assert np.array_equal(segments.mask, np.arange(4)[None].repeat(6, 0) == 0)
    assert seen[-1] == ((24, 3), (24, 2), (24, 3))
    # A quarter of each segment is left
    assert model.rollout_buffer.n_imagined == 2 * 32 // 4


# Recording


def recorded(env: ToyEnv, steps: int = 64) -> Segments:
    """All transitions that AGDPPO stores while it trains in the environment."""
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(steps)
    return model.replay_buffer.windows(*model.replay_buffer.recent_starts(steps + steps), horizon=1)


@pytest.mark.parametrize("terminates", [False, True])
def test_truncations_are_no_terminations_and_the_last_state_is_not_the_reset_one(terminates: bool) -> None:
    env = ToyEnv(episode_length=5, terminates=terminates, observe=lambda step: np.full(3, step / 10, dtype=np.float32))
    transitions = recorded(env)
    before, after = transitions.observations[:, 0, 0], transitions.observations[:, 1, 0]
    assert len(before) == 64
    assert np.allclose(after - before, 0.1)
    last = np.isclose(after, 0.5)
    assert np.array_equal(transitions.terminations[:, 0].numpy(), last & terminates)


def test_rewards_are_stored_without_the_value_that_sb3_adds_at_truncations() -> None:
    transitions = recorded(ToyEnv(episode_length=5, terminates=False))
    assert th.all(transitions.rewards == 1)


def test_stores_raw_observations_and_rewards_under_vec_normalize() -> None:
    env = VecNormalize(
        DummyVecEnv([lambda: ToyEnv(episode_length=7, observe=lambda step: np.full(3, 100.0 + step, np.float32))])
    )
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    transitions = model.replay_buffer.windows(*model.replay_buffer.recent_starts(200), horizon=1)
    assert np.allclose(transitions.observations[:, 1] - transitions.observations[:, 0], 1.0, atol=1e-3)
    assert th.all(transitions.rewards == 1)


def test_stores_actions_as_the_environment_received_them() -> None:
    env = ToyEnv(action_space=spaces.Box(-0.1, 0.1, (2,)))
    transitions = recorded(env)
    assert np.allclose(transitions.actions[:, 0].numpy(), np.stack(env.received))
    assert np.abs(transitions.actions.numpy()).max() <= np.float32(0.1)


# Saving


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_a_loaded_model_predicts_and_imagines_identically_and_goes_on_learning(env_id: str, tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", env_id, **SMALL).learn(100)
    starts = model.env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model")
        loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert np.array_equal(model.predict(starts, deterministic=True)[0], loaded.predict(starts, deterministic=True)[0])
    # With a seed, and going on with the private stream
    for seed in (5, None):
        first, second = model.imagine(starts, seed=seed), loaded.imagine(starts, seed=seed)
        assert np.array_equal(first.observations, second.observations)
        assert np.array_equal(first.actions, second.actions)
    first_state, second_state = (m.world_model.optimizer.state_dict()["state"] for m in (model, loaded))
    assert all(th.equal(first_state[i]["exp_avg"], second_state[i]["exp_avg"]) for i in first_state)
    loaded.learn(100)
    assert loaded.world_model.n_updates > model.world_model.n_updates


def test_a_denoiser_of_ones_own_is_used_and_saved(tmp_path: Path) -> None:
    class OneStepDenoiser(nn.Module):
        def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int, depth: int):
            super().__init__()
            self.shape = (horizon, width, depth)
            self.layer = nn.Linear(2 * observation_dim + 1 + action_dim, observation_dim + 1)

        def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
            start = start[:, None].expand(-1, noisy.shape[1], -1)
            return self.layer(th.cat([noisy, start, actions], dim=-1))

    world_model_kwargs = {"network": OneStepDenoiser, "width": 7}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_kwargs": world_model_kwargs}).learn(64)
    assert model.rollout_buffer.n_imagined > 0
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.world_model.networks["denoiser"].shape == (SMALL["horizon"], 7, 2)
    starts = model.env.reset()
    assert np.array_equal(model.imagine(starts, seed=1).observations, loaded.imagine(starts, seed=1).observations)
    loaded.learn(64)
    assert loaded.world_model.n_updates > model.world_model.n_updates


def test_parameters_of_a_file_bring_a_trained_world_model(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "model")
    other = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 1000})
    other.set_parameters(tmp_path / "model")
    other.learn(32)
    assert other.rollout_buffer.n_imagined > 0 and other.world_model.n_updates == model.world_model.n_updates


def test_loads_without_an_environment(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", guidance=ExponentialAdvantageGuide(), **SMALL).learn(64)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    assert loaded.imagine(np.zeros((2, 3))).rewards.shape == (2, SMALL["horizon"])


def test_a_model_loaded_without_environment_imagines_with_the_normalisation_it_was_trained_with(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SMALL).learn(128)
    model.save(tmp_path / "model")
    starts = np.array([[1.0, 0.0, 2.0]])
    expected = model.imagine(starts, guidance="eag", seed=1)
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    loaded.save(tmp_path / "again")
    segments = AGDPPO.load(tmp_path / "again", device="cpu").imagine(starts, guidance="eag", seed=1)
    assert np.array_equal(segments.observations, expected.observations)
    assert np.array_equal(segments.actions, expected.actions)


def test_an_environment_to_evaluate_in_leaves_rewards_in_the_units_of_the_critic() -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SMALL).learn(128)
    rewards = th.tensor([-8.0, -1.0])
    expected = model.imagination.agent.rewards(rewards)
    assert expected[0] > -8
    model.env.training = model.env.norm_reward = False
    assert th.equal(model.imagination.agent.rewards(rewards), expected)
    # Training with raw rewards is another matter
    model.learn(64, reset_num_timesteps=False)
    assert th.equal(model.imagination.agent.rewards(rewards), rewards)


def test_transitions_are_saved_and_loaded(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save_replay_buffer(tmp_path / "folder" / "transitions")
    loaded = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    loaded.load_replay_buffer(tmp_path / "folder" / "transitions")
    assert len(loaded.replay_buffer) == 64
    assert np.array_equal(loaded.replay_buffer.observations, model.replay_buffer.observations)
    loaded.learn(64)
    assert len(loaded.replay_buffer) == 128


def test_a_corrupt_file_of_transitions_is_named_and_changes_nothing(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save_replay_buffer(tmp_path / "good.npz")
    content = (tmp_path / "good.npz").read_bytes()
    for name, damaged in (("truncated.npz", content[: len(content) // 2]), ("text.npz", b"text"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            model.load_replay_buffer(tmp_path / name)
    assert len(model.replay_buffer) == 64
    other = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="observation dimensions is 3, here it is 4"):
        other.load_replay_buffer(tmp_path / "good.npz")


def test_warm_starts_from_a_ppo_file(tmp_path: Path) -> None:
    ppo = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=SMALL["policy_kwargs"], n_steps=32).learn(32)
    ppo.save(tmp_path / "ppo")
    with pytest.raises(ValueError, match="set_parameters"):
        AGDPPO.load(tmp_path / "ppo")
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.set_parameters(tmp_path / "ppo", exact_match=False)
    assert all(th.equal(a, b) for a, b in zip(ppo.policy.parameters(), model.policy.parameters(), strict=True))
    # The other way round
    model.learn(64).save(tmp_path / "agdppo")
    with pytest.raises(Exception, match="world_model"):
        PPO.load(tmp_path / "agdppo")
    ppo.policy.load_state_dict(model.policy.state_dict())


# Bad settings


@pytest.mark.parametrize(
    "name, value",
    [
        ("guidance", "sigmoid"),
        ("guidance", 3),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("horizon", 0),
        ("horizon", 2.5),
        ("synthetic_ratio", -0.1),
        ("synthetic_ratio", "many"),
        ("synthetic_ratio", lambda progress: -progress),
        ("real_data_ratio", 1.0),
        ("real_data_ratio", -0.1),
        ("real_data_ratio", "0.5"),
        ("n_denoising_steps", 0),
        ("sampler", "euler"),
        ("world_model_gradient_steps", 0),
        ("world_model_batch_size", 0),
        ("world_model_learning_rate", 0.0),
        ("world_model_warmup", -1),
        ("world_model_buffer_size", 5),
        ("world_model_kwargs", {"hiden": 3}),
        ("termination_fn", "rule"),
        ("rollout_buffer_class", sb3_agd.agdppo.rollout_buffer.RolloutBuffer),
    ],
)
def test_a_wrong_setting_is_refused_at_construction_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        AGDPPO("MlpPolicy", "Pendulum-v1", **{name: value})


@pytest.mark.parametrize("kwargs", [{"width": 0}, {"width": True}, {"depth": 0}, {"network": "unet"}, {"ema_decay": 1.0}])
def test_a_wrong_world_model_argument_is_refused_at_construction_by_name(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}`"):
        AGDPPO("MlpPolicy", "Pendulum-v1", world_model_kwargs=kwargs)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy", "CnnPolicy"])
@pytest.mark.parametrize(
    "space, advice",
    [
        (spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8), "CnnPolicy"),
        (spaces.Box(0, 1, (64, 64)), "CnnPolicy"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(2)}), "FlattenObservation"),
    ],
    ids=["image", "map", "dict"],
)
def test_images_and_dicts_are_refused_at_construction(policy: str, space: spaces.Space, advice: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)observation space.*{advice}"):
        AGDPPO(policy, ToyEnv(space))


def test_discrete_spaces_that_do_not_begin_with_zero_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"observation space.*begin with 0"):
        AGDPPO("MlpPolicy", ToyEnv(spaces.Discrete(3, start=1)))


def test_a_world_model_that_was_never_trained_is_not_imagined_with() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(ValueError, match="The world model was not trained yet"):
        model.imagine(np.zeros((2, 3)))


def test_a_setting_that_the_world_model_was_built_with_cannot_change_unnoticed(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    for name, value in {"n_denoising_steps": 3, "world_model_buffer_size": 500, "world_model_kwargs": {"width": 7}}.items():
        before = getattr(model, name)
        setattr(model, name, value)
        named = "width" if isinstance(value, dict) else name
        with pytest.raises(ValueError, match=f"`{named}` was .* when the world model was built"):
            model.learn(64)
        setattr(model, name, before)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu", n_denoising_steps=3)
    assert loaded.learn(64).world_model.n_denoising_steps == 3


def test_imagine_refuses_bad_observations() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    for observations in (np.zeros(3), np.zeros((2, 4)), np.full((2, 3), np.nan)):
        with pytest.raises(ValueError, match="`observations`"):
            model.imagine(observations)


@pytest.mark.parametrize("observation", [[3, 0], [0, -1], [0, 7], [1.7, 0.2]])
def test_imagine_refuses_what_is_not_in_a_discrete_space(observation: list[float]) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.MultiDiscrete([3, 3])), **SMALL)
    with pytest.raises(ValueError, match=r"`observations` must be of MultiDiscrete\(\[3 3\]\)"):
        model.imagine(np.array([observation]))


def test_a_device_without_double_precision_is_refused() -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    model.device = th.device("mps")
    with pytest.raises(ValueError, match='MPS does not have: give `device="cpu"`'):
        Imagination(model, {"world_model_buffer_size": 100})


def test_guidance_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`n_denoising_steps` must be at least 2 with `n_particles=1`"):
        AGDPPO("MlpPolicy", "Pendulum-v1", n_particles=1, n_denoising_steps=1)
    AGDPPO("MlpPolicy", "Pendulum-v1", n_particles=1, n_denoising_steps=1, guidance="none")


def test_the_callback_is_refused_where_it_does_not_see_each_step() -> None:
    model = A2C("MlpPolicy", ToyEnv(), n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer)
    for callback in (GuidanceCallback(), CallbackList([GuidanceCallback()])):
        with pytest.raises(ValueError, match="GuidanceCallback must see each step: within EveryNTimesteps"):
            model.learn(64, EveryNTimesteps(32, callback))


# Bad data


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_bad_numbers_name_the_environment_and_the_step(value: float, what: str) -> None:
    def observe(step: int) -> np.ndarray:
        return np.full(3, value if what == "observation" and step == 10 else 0.5, dtype=np.float32)

    def reward(step: int) -> float:
        return value if what == "reward" and step == 10 else 1.0

    good, bad = ToyEnv(), ToyEnv(observe=observe, reward=reward)
    model = AGDPPO("MlpPolicy", DummyVecEnv([lambda: good, lambda: bad]), **SMALL)
    with pytest.raises(ValueError, match=f"{what} in environment 1 at step 20"):
        model.learn(64)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("what", "step"), [("observation", 0), ("observation", 10), ("reward", 10)])
def test_training_goes_on_with_vec_normalize_after_bad_numbers(what: str, step: int, stacked: bool) -> None:
    bad = {what: step}
    env = ToyEnv()
    env.observe = lambda steps: np.full(3, np.nan if steps == env.total_steps == bad.get("observation") else 0.5, np.float32)
    env.reward = lambda steps: np.nan if steps == bad.get("reward") else 1.0
    normalize = VecNormalize(DummyVecEnv([lambda: env]))
    model = AGDPPO("MlpPolicy", VecFrameStack(normalize, 2) if stacked else normalize, **SMALL)
    with pytest.raises(ValueError, match=f"{what} in environment 0 at step {step}"):
        model.learn(64)
    bad.clear()
    for statistics in (normalize.obs_rms, normalize.ret_rms):
        assert np.isfinite(statistics.mean).all() and np.isfinite(statistics.var).all()
    model.learn(64)
    assert model.rollout_buffer.n_imagined > 0
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_a_bad_action_names_the_environment_and_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whose next observation is bad then, too
    model = AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", 2), **SMALL)
    forward = model.policy.forward

    def bad(observations: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_probs = forward(observations)
        actions[1, 0] = np.nan if model.num_timesteps == 18 else 0.0
        return actions, values, log_probs

    monkeypatch.setattr(model.policy, "forward", bad)
    with pytest.raises(ValueError, match="action in environment 1 at step 20"):
        model.learn(64)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("episode_length", [1, 3, 50])
def test_any_scale_and_short_episodes_and_constant_dimensions_train(scale: float, episode_length: int) -> None:
    rng = np.random.default_rng(0)

    def observe(step: int) -> np.ndarray:
        return np.array([scale * rng.normal(), 7.0, scale * step], dtype=np.float32)

    env = ToyEnv(
        spaces.Box(-np.inf, np.inf, (3,)),
        observe=observe,
        episode_length=episode_length,
        terminates=True,
        reward=lambda step: scale * rng.normal(),
    )
    model = AGDPPO("MlpPolicy", env, **SMALL | {"n_steps": 30}).learn(120)
    assert model.rollout_buffer.n_imagined > 0
    for parameter in (*model.policy.parameters(), *model.world_model.parameters()):
        assert th.isfinite(parameter).all()
    segments = model.imagine(np.array([[0.0, 7.0, 0.0]]))
    assert np.allclose(segments.observations[..., 1], 7.0)
    assert np.isfinite(segments.observations).all()


# The critic


def test_advantages_of_imagined_rows_are_those_of_sb3s_buffer() -> None:
    n_steps, gamma, gae_lambda = 7, 0.9, 0.8
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=n_steps).astype(np.float32), rng.normal(size=n_steps + 1).astype(np.float32)
    terminations = np.arange(n_steps) == 3
    buffer = RolloutBuffer(
        n_steps, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)), device="cpu", gamma=gamma, gae_lambda=gae_lambda
    )
    begins = np.append(False, terminations[:-1])
    for step in range(n_steps):
        numbers = (rewards[[step]], begins[[step]], th.tensor([values[step]]), th.zeros(1))
        buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), *numbers)
    buffer.compute_returns_and_advantage(th.tensor([values[-1]]), terminations[-1:])
    segment = (th.from_numpy(array)[None] for array in (rewards, terminations, values))
    ours = generalized_advantages(*segment, gamma, gae_lambda)
    np.testing.assert_allclose(ours[0].numpy(), buffer.advantages[:, 0], rtol=1e-5)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_imagined_rows_hold_what_policy_and_critic_say(env_id: str) -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env(env_id)), **SMALL).learn(64)
    model.imagination.augment(model.rollout_buffer, None, 0.0, 1, 64)
    rows = model.rollout_buffer.imagined
    assert rows is not None
    actions = rows.actions.long().flatten() if env_id == "CartPole-v1" else rows.actions
    values, log_probs, _ = model.policy.evaluate_actions(rows.observations, actions)
    assert th.allclose(rows.old_values, values.flatten(), atol=1e-5)
    assert th.allclose(rows.old_log_prob, log_probs, atol=1e-5)
    low, high = model.imagination.state.value_range
    bounded = rows.old_values.clamp(low, high)
    assert th.allclose(rows.returns, (rows.advantages + bounded).clamp(low, high), atol=1e-5)
    # They differ, so that there is something to learn
    assert rows.advantages.std() > 0 and log_probs.std() > 0


def test_the_critic_is_trusted_as_far_as_it_explains_the_returns() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"synthetic_ratio": 0.0, "gamma": 0.5, "n_epochs": 20})
    explained = []

    class Explained(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = model.rollout_buffer
            explained.append(explained_variance(buffer.values.flatten(), buffer.returns.flatten()))

    for _ in range(5):
        model.learn(32, Explained(), reset_num_timesteps=False)
        assert model.imagination.state.critic_trust == pytest.approx(max(explained[-1], 0), abs=1e-6)
    assert model.imagination.state.critic_trust > 0


def test_imagination_starts_from_recent_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_agd.agdppo.imagination.RECENT_ROWS", 16)
    numbers = itertools.count()
    env = ToyEnv(spaces.Box(0, 1e3, (1,)), episode_length=1000, observe=lambda _: np.array([next(numbers)], dtype=np.float32))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    starts: list[th.Tensor] = []
    imagine = model.imagination.imagine
    monkeypatch.setattr(model.imagination, "imagine", lambda first, *rest: starts.append(first) or imagine(first, *rest))
    model.imagination.augment(model.rollout_buffer, None, 0.0, 1, 400)
    assert set(starts[0].flatten().tolist()) == set(range(48, 64))


def test_values_of_imagined_rows_stay_within_the_margin_of_real_returns() -> None:
    """A critic that claims far more than was ever earned must not be able to teach it to itself."""
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=True), **SMALL).learn(64)
    with th.no_grad():
        model.policy.value_net.bias.fill_(1e4)
    imagination = model.imagination
    model.rollout_buffer.generator_ready = False
    imagination.augment(model.rollout_buffer, None, 0.0, 1, 64)
    imagined = model.rollout_buffer.imagined
    largest = sum(0.99**step for step in range(10))
    assert imagined.returns.max() <= 1.25 * largest
    assert imagined.advantages.abs().max() <= 10 * largest


@pytest.mark.parametrize("terminates", [True, False], ids=["terminations", "time limits"])
def test_value_targets_of_real_rows_stay_within_the_margin_of_real_returns_too(terminates: bool) -> None:
    class Bias(BaseCallback):
        def _on_step(self) -> bool:
            with th.no_grad():
                model.policy.value_net.bias.fill_(1e4)
            return True

    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=terminates), **SMALL)
    model.learn(64, Bias())
    low, high = model.imagination.state.value_range
    assert high <= 1.25 * (sum(0.99**step for step in range(10)) if terminates else 100)
    buffer = model.rollout_buffer
    # As they are stored, in single precision
    assert np.float32(low) <= buffer.returns.min() and buffer.returns.max() <= np.float32(high)
    # SB3 adds the value of the last state where a time limit cuts an episode off
    assert buffer.rewards.max() == pytest.approx(1 if terminates else 1 + 0.99 * high)
    assert np.abs(buffer.advantages).max() < 2 * high
    # PPO's `clip_range_vf` is about what the critic said
    assert buffer.values.min() > 1e3


def test_the_bound_on_values_does_not_depend_on_the_critic() -> None:
    ranges = []
    for bias in (0.0, 1e4):
        model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=True), **SMALL)
        with th.no_grad():
            model.policy.value_net.bias.fill_(bias)
        model.learn(32)
        ranges.append(model.imagination.state.value_range)
    assert ranges[0] == ranges[1]


@pytest.mark.parametrize("terminates, value", [(False, 50.0), (True, sum(0.98**step for step in range(8)))])
def test_the_bound_on_values_looks_beyond_time_limits_and_not_beyond_terminations(terminates: bool, value: float) -> None:
    """SB3's values do so: with a reward of 1 per step and time limits alone, each state is worth 1 / (1 - gamma)."""
    env = ToyEnv(episode_length=8, terminates=terminates)
    model = AGDPPO("MlpPolicy", env, gamma=0.98, **SMALL).learn(64)
    low, high = model.imagination.state.value_range
    assert low - 1e-6 <= value <= high + 1e-6
    assert high <= 1.25 * value


@pytest.mark.parametrize("gamma, value", [(0.999, 1000.0), (1.0, 8_000.0)])
def test_the_bound_on_values_looks_far_enough_back_whatever_the_rollouts(gamma: float, value: float) -> None:
    """Otherwise short rollouts of many environments show only a part of what an episode goes on to earn."""
    model = AGDPPO("MlpPolicy", DummyVecEnv([ToyEnv] * 4), **SMALL | {"n_steps": 4, "gamma": gamma})
    zeros = np.zeros((4, 3), dtype=np.float32)
    for step in range(8_000):
        # One episode ends, so that the others may end as well
        ends = np.array([step == 4_000, False, False, False])
        model.replay_buffer.add(zeros, zeros[:, :2], np.ones(4, dtype=np.float32), zeros, ends, ends)
    _, high = model.imagination._value_range()
    assert value <= high <= 1.25 * value


def test_the_bound_on_values_holds_for_episodes_that_have_not_ended_yet() -> None:
    model = AGDPPO("MlpPolicy", DummyVecEnv([partial(ToyEnv, episode_length=1000)] * 2), **SMALL).learn(64)
    assert model.imagination.state.value_range[1] == pytest.approx(100)


def test_a_model_loaded_without_its_transitions_keeps_its_bound_on_values(tmp_path: Path) -> None:
    AGDPPO("MlpPolicy", ToyEnv(episode_length=40, terminates=True), **SMALL).learn(64).save(tmp_path / "model")
    for load_transitions in (False, True):
        model = AGDPPO.load(tmp_path / "model", ToyEnv(episode_length=2, terminates=True))
        before = model.imagination.state.value_range
        if load_transitions:
            model.save_replay_buffer(tmp_path / "none")
            model.load_replay_buffer(tmp_path / "none")
        model.learn(32, reset_num_timesteps=False)
        assert (model.imagination.state.value_range[1] < before[1]) == load_transitions


class AddedOutside(VecEnvWrapper):
    """Adds to what VecNormalize puts out."""

    def reset(self) -> np.ndarray:
        return self.venv.reset() + 5

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations + 5, rewards + 100, dones, infos


def test_what_a_wrapper_around_vec_normalize_puts_out_is_what_counts() -> None:
    env = AddedOutside(VecNormalize(DummyVecEnv([ToyEnv])))
    model = AGDPPO("MlpPolicy", env, gamma=0.5, **SMALL).learn(64)
    buffer = model.rollout_buffer
    assert buffer.returns.min() > 100
    assert buffer.imagined is not None
    assert buffer.imagined.observations.mean().item() == pytest.approx(buffer.observations.mean(), abs=1)
    low, high = model.imagination.state.value_range
    assert low < buffer.returns.min() and buffer.returns.max() < high


def test_rewards_that_a_callback_adds_to_reach_the_policy_as_they_are() -> None:
    class Bonus(BaseCallback):
        def _on_step(self) -> bool:
            self.locals["rewards"] += 0.25
            return True

    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=True), gamma=0.5, **SMALL).learn(64, Bonus())
    assert np.all(model.rollout_buffer.rewards == 1.25)


@pytest.mark.parametrize("last", [5.0, 500.0])
def test_a_clipped_last_state_is_told(last: float) -> None:
    def observe(step: int) -> np.ndarray:
        return np.full(3, last if step == 10 else step / 5, dtype=np.float32)

    env = VecNormalize(DummyVecEnv([lambda: ToyEnv(spaces.Box(-1e3, 1e3, (3,)), episode_length=10, observe=observe)]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = AGDPPO("MlpPolicy", env, **SMALL).learn(32)
    told = any("VecNormalize has clipped the last state" in str(warning.message) for warning in caught)
    highest = model.replay_buffer.observations[0, : model.replay_buffer.position[0]].max()
    assert told == (highest < last)
    assert told == (last == 500)


def test_an_environment_that_hides_the_last_state_of_an_episode_is_named() -> None:
    class Hiding(VecEnvWrapper):
        def reset(self) -> np.ndarray:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            return observations, rewards, dones, [{} for _ in infos]

    env = Hiding(DummyVecEnv([lambda: ToyEnv(episode_length=50), lambda: ToyEnv(episode_length=10)]))
    with pytest.raises(ValueError, match=r"Environment 1 .*ended at step 20.*terminal_observation"):
        AGDPPO("MlpPolicy", env, **SMALL).learn(64)


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


def test_particles_raise_the_objective_and_stay_on_the_model() -> None:
    class FirstDimension(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return 10 * segments.observations[:, 1:, 0].sum(1)

    arguments = SMALL | {"world_model_gradient_steps": 100, "policy_kwargs": {"log_std_init": 0.0}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", n_particles=8, guidance=FirstDimension(), **arguments).learn(64)
    starts = np.tile(model.replay_buffer.observations[0, 20:50], (10, 1))
    chosen, drawn = (model.imagine(starts, guidance_scale=scale, seed=0) for scale in (3.0, 0.0))
    assert chosen.observations.shape == drawn.observations.shape == (300, SMALL["horizon"] + 1, 3)
    gains = (chosen.observations - drawn.observations)[:, 1:, 0].mean(1)
    assert gains.mean() > 3 * gains.std() / np.sqrt(300)
    # Nothing was moved: the model makes the same states of the same actions, up to its own noise
    imagination = model.imagination
    states = th.as_tensor(chosen.observations)
    actions = th.as_tensor(chosen.actions)
    again = model.world_model.imagine(states[:, 0], lambda _, steps: actions[:, steps], generator=imagination.generator(1))
    spread = model.world_model.imagine(states[:, 0], lambda _, steps: actions[:, steps], generator=imagination.generator(2))
    noise = (again.observations - spread.observations).square().mean().sqrt()
    assert (again.observations - states).square().mean().sqrt() < 1.5 * noise


@pytest.mark.parametrize("n_particles", [1, 4])
def test_segments_on_which_the_critic_is_not_a_number_are_left_out(n_particles: int) -> None:
    class Partial(th.nn.Module):
        def __init__(self, whole: th.nn.Module):
            super().__init__()
            self.whole = whole

        def forward(self, latent: th.Tensor) -> th.Tensor:
            return self.whole(latent).where(latent[:, :1] < 0, th.nan)

    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    model.policy.value_net = Partial(model.policy.value_net)
    model.imagination.augment(model.rollout_buffer, SigmoidAdvantageGuide(), 1.0, n_particles, 64)
    rows = model.rollout_buffer.imagined
    assert 0 < len(rows.returns) < 64
    for name in ("old_values", "old_log_prob", "advantages", "returns"):
        assert getattr(rows, name).isfinite().all(), name


def test_a_guide_that_has_nothing_to_move_is_told_to_choose() -> None:
    class SmallActions(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return -segments.actions.square().sum((1, 2))

    for n_particles in (1, 2):
        model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"guidance": SmallActions(), "n_particles": n_particles}).learn(32)
        model.imagination.state.critic_trust = 1.0
        if n_particles == 1:
            with pytest.raises(ValueError, match=r"SmallActions depends on neither .* `n_particles` above 1"):
                model.imagine(np.zeros((2, 3)), guidance_scale=1.0)
        else:
            model.imagine(np.zeros((2, 3)), guidance_scale=1.0)


def test_rows_of_chosen_particles_hold_their_own_actions() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", n_particles=4, guidance="eag", **SMALL).learn(64)
    imagination = model.imagination
    starts = th.zeros(50, 3)
    segments, actions = imagination.imagine(starts, SigmoidAdvantageGuide(), 5.0, 4, imagination.generator(0))
    # The environment receives the policy's actions, clipped
    assert th.equal(segments.actions, actions.clamp(-2, 2))


def test_a_critic_that_explains_nothing_guides_nothing() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"guidance_scale": 10.0}).learn(64)
    imagination = model.imagination
    # After two rollouts none of the critic's values is credible, and what is bounded has no slope
    imagination.state.value_range = (-math.inf, math.inf)
    imagination.state.critic_trust = 0.0
    imagination.augment(model.rollout_buffer, SigmoidAdvantageGuide(), 10.0, 1, 32)
    assert imagination.world_model.guidance_norm == 0
    imagination.state.critic_trust = 1.0
    imagination.augment(model.rollout_buffer, SigmoidAdvantageGuide(), 10.0, 1, 32)
    assert imagination.world_model.guidance_norm > 0


@pytest.mark.parametrize(
    "synthetic_ratio, real_data_ratio, n_repeats",
    [(8, 0.0, 1), (8, 0.05, 1), (8, 0.2, 2), (8, 0.3, 4), (8, 0.5, 8), (5, 0.2, 2), (16, 0.2, 4), (0.5, 0.2, 1)],
)
def test_real_rows_are_repeated_until_they_have_their_share(
    synthetic_ratio: float, real_data_ratio: float, n_repeats: int
) -> None:
    settings = SMALL | {"synthetic_ratio": synthetic_ratio, "real_data_ratio": real_data_ratio}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **settings).learn(64)
    rows = next(model.rollout_buffer.get(None))
    assert len(rows.advantages) == 32 * n_repeats + 32 * synthetic_ratio


# The callback


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO])
def test_the_callback_works_alone_with_other_on_policy_algorithms(algorithm: Any) -> None:
    settings = ("n_steps", "batch_size", "n_epochs", "policy_kwargs", "device", "seed")
    callback = GuidanceCallback(**{key: value for key, value in SMALL.items() if key not in settings})
    model = algorithm("MlpPolicy", "Pendulum-v1", n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    model.learn(128, callback)
    assert callback.world_model.n_updates > 0
    assert model.rollout_buffer.n_imagined == 64
    rows = next(model.rollout_buffer.get(None))
    assert len(rows.advantages) == 32 + 64


def test_the_callback_refuses_other_algorithms_and_buffers() -> None:
    for model in (PPO("MlpPolicy", "Pendulum-v1", n_steps=32), SAC("MlpPolicy", "Pendulum-v1", buffer_size=100)):
        with pytest.raises(ValueError, match="AugmentedRolloutBuffer"):
            model.learn(32, GuidanceCallback())


def test_the_callback_goes_on_with_a_model_loaded_from_a_file(tmp_path: Path) -> None:
    settings = {"n_steps": 32, "rollout_buffer_class": AugmentedRolloutBuffer, "device": "cpu"}
    callback = GuidanceCallback(horizon=4, world_model_warmup=0, world_model_gradient_steps=2)
    first = A2C("MlpPolicy", "Pendulum-v1", **settings).learn(64, callback)
    first.save(tmp_path / "model")
    n_updates = callback.world_model.n_updates.item()
    second = A2C.load(tmp_path / "model", env=first.env, device="cpu").learn(64, callback)
    assert callback.imagination.model is second
    assert callback.world_model.n_updates == n_updates + 2 * 2
    # The windows of one run never reach into the other
    assert len(callback.imagination.store) == 128
    steps = callback.imagination.store.recent_starts(1000)[1]
    assert (np.diff(steps) == 2).sum() == 1
    with pytest.raises(ValueError, match=r"used with `observation_space` Box.*make a new GuidanceCallback"):
        A2C("MlpPolicy", "MountainCarContinuous-v0", **settings).learn(64, callback)


def make_counter() -> ToyEnv:
    """Its observations say how many steps of the episode are over, in thousandths."""
    return ToyEnv(episode_length=1000, observe=lambda step: np.full(3, step / 1000, dtype=np.float32))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mover", ["reset", "evaluation", "training without the callback", "training that was stopped"])
def test_no_transition_is_made_up_where_others_have_moved_the_environments(mover: str, normalize: bool) -> None:
    env: VecEnv = DummyVecEnv([make_counter])
    if normalize:
        env = VecNormalize(env)
    guidance = {name: value for name, value in SMALL.items() if name in inspect.signature(GuidanceCallback).parameters}
    callback = GuidanceCallback(**guidance)
    model = A2C("MlpPolicy", env, n_steps=16, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu", seed=0)
    if mover == "training that was stopped":
        stop = ConvertCallback(lambda local_variables, _: local_variables["self"].num_timesteps < 39)
        model.learn(64, [GuidanceCallback(**guidance), stop])
    else:
        model.learn(64, callback)
    if mover == "reset":
        model.env.reset()
    elif mover == "evaluation":
        evaluate_policy(model, model.env, n_eval_episodes=1, warn=False)
    elif mover == "training without the callback":
        model.learn(40, reset_num_timesteps=False)
    model.learn(64, callback, reset_num_timesteps=False)
    store = callback.imagination.store
    streams, rows = store.recent_starts(1000)
    steps = (1000 * store.observations[streams, rows, 0]).round(), (1000 * store.observations[streams, rows + 1, 0]).round()
    assert len(rows) == (64 if mover == "training that was stopped" else 128)
    assert np.array_equal(steps[1] - steps[0], np.ones(len(rows)))


def test_a_second_guidance_callback_is_refused() -> None:
    with pytest.raises(ValueError, match="installs"):
        AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(32, GuidanceCallback())


def test_numbers_may_be_numpys() -> None:
    numbers = {"guidance_scale": np.float32(1), "synthetic_ratio": np.int64(2), "world_model_learning_rate": np.float32(1e-3)}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | numbers).learn(64)
    assert model.rollout_buffer.n_imagined > 0


def test_settings_that_a_callback_changes_take_effect_at_once() -> None:
    class Switch(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 70:
                self.model.synthetic_ratio = 4.0
            return True

        def _on_rollout_end(self) -> None:
            counts.append(self.model.rollout_buffer.n_imagined)

    counts: list[int] = []
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.learn(96, Switch())
    assert counts == [2 * 32, 2 * 32, 4 * 32]
    model.horizon = 2
    with pytest.raises(ValueError, match="`horizon` was 4 when the world model was built"):
        model.learn(32)


def test_a_run_without_a_seed_repeats_what_global_seeds_repeat() -> None:
    def run(seed: int) -> AGDPPO:
        set_random_seed(seed)
        model = AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), **SMALL | {"seed": None})
        return model.learn(96)

    first, second, other = run(0), run(0), run(1)
    for name in ("policy", "world_model"):
        ours, theirs = (list(getattr(model, name).parameters()) for model in (first, second))
        assert all(th.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not th.equal(
        first.world_model.networks["denoiser"].state.weight, other.world_model.networks["denoiser"].state.weight
    )


def test_the_ends_of_episodes_may_be_any_numbers() -> None:
    class FloatDones(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            return observations, rewards, dones.astype(np.float32), infos

    model = AGDPPO("MlpPolicy", FloatDones(make_vec_env(ToyEnv)), **SMALL).learn(64)
    assert model.rollout_buffer.n_imagined > 0


def test_a_file_that_is_saved_again_has_the_present_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "old")
    monkeypatch.setattr("sb3_agd.agdppo.agdppo.FILE_FORMAT", 2)
    AGDPPO.load(tmp_path / "old").save(tmp_path / "new")
    data, _, _ = load_from_zip_file(tmp_path / "new")
    assert data["file_format"] == 2


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


def test_agdppo_has_the_arguments_and_defaults_of_its_callback() -> None:
    ours, callbacks = (inspect.signature(each).parameters for each in (AGDPPO, GuidanceCallback))
    names = set(callbacks) - {"progress_bar", "verbose"}
    assert {name: ours[name].default for name in names} == {name: callbacks[name].default for name in names}


def test_the_world_model_is_tested_on_a_rollout_before_it_learns_it() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    order: list[str] = []
    for name in ("test", "fit"):
        method = getattr(model.imagination, name)
        setattr(model.imagination, name, lambda *args, name=name, method=method: order.append(name) or method(*args))
    model.learn(96)
    assert order == ["fit", "test", "fit", "test", "fit"]


def test_a_store_with_too_little_room_for_each_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="`world_model_buffer_size` 40 is too small: each of the 8 environments"):
        AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", 8), **SMALL | {"world_model_buffer_size": 40})


def test_no_more_rows_are_imagined_than_asked_for() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.imagination.augment(model.rollout_buffer, None, 0.0, 1, n_rows=63)
    assert model.rollout_buffer.n_imagined == 63


def test_schedules_are_followed() -> None:
    model = AGDPPO(
        "MlpPolicy",
        "Pendulum-v1",
        **SMALL
        | {
            "synthetic_ratio": lambda progress: 4 * progress,
            "guidance_scale": lambda progress: progress,
            "world_model_learning_rate": lambda progress: 1e-3 * progress,
        },
    )
    scales, counts = [], []
    augment = model.imagination.augment

    def spy(buffer: AugmentedRolloutBuffer, guide: Guide, scale: float, *args: Any) -> float:
        masked_share = augment(buffer, guide, scale, *args)
        scales.append(scale)
        counts.append(buffer.n_imagined)
        return masked_share

    model.imagination.augment = spy
    model.learn(128)
    # After each of the four rollouts, a quarter of the progress is used up; the last one leaves nothing to imagine
    assert scales == [0.75, 0.5, 0.25]
    assert counts == [3 * 32, 2 * 32, 32]
    assert model.rollout_buffer.n_imagined == 0
    assert model.world_model.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.25)


def test_the_learning_rate_of_the_world_model_may_fall_to_zero() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_learning_rate": lambda progress: 1e-3 * progress})
    assert model.learn(64).world_model.optimizer.param_groups[0]["lr"] == 0


def test_a_ratio_of_less_than_one_row_is_plain_ppo() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"synthetic_ratio": 0.01}).learn(64)
    assert model.rollout_buffer.n_imagined == 0 and model.world_model.n_updates == 0
    callback = GuidanceCallback(synthetic_ratio=0.05, world_model_warmup=0, horizon=4)
    A2C("MlpPolicy", "Pendulum-v1", rollout_buffer_class=AugmentedRolloutBuffer, device="cpu").learn(20, callback)
    assert callback.world_model.n_updates == 0


def test_no_start_state_is_refused() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    with pytest.raises(ValueError, match="`observations` must hold at least one start state"):
        model.imagine(np.zeros((0, 3)))


def test_a_full_store_is_warm_enough() -> None:
    settings = SMALL | {"world_model_warmup": 1000, "world_model_buffer_size": 80}
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=1), **settings).learn(32)
    assert model.world_model.n_updates == 0
    model.learn(32, reset_num_timesteps=False)
    assert model.world_model.n_updates > 0


def test_a_schedule_that_ends_at_zero_survives_a_rollout_beyond_the_end() -> None:
    arguments = SMALL | {"synthetic_ratio": lambda progress: progress, "guidance_scale": lambda progress: progress}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **arguments).learn(40)
    assert model.num_timesteps == 64
    model.imagine(model.env.reset())


def test_a_model_loaded_without_transitions_imagines_but_does_not_fit_on_a_handful(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 64}).learn(64)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    n_updates = loaded.world_model.n_updates.item()
    loaded.learn(32)
    assert loaded.rollout_buffer.n_imagined == 64 and loaded.world_model.n_updates == n_updates
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.world_model.n_updates == n_updates + 3


def test_every_real_transition_enters_the_statistics() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=1, terminates=True), **SMALL).learn(96)
    assert model.world_model.action_normalizer.count == 96
    assert model.world_model.n_terminations == 96


@pytest.mark.parametrize("stop", [10, 32 + 1, 50 + 1])
def test_steps_of_a_stopped_rollout_enter_the_statistics_and_join_the_next_one(stop: int) -> None:
    """SB3 forgets the observation of the step at which a callback stops the training, the first of an episode as well."""
    env = ToyEnv(observe=lambda step: np.full(3, step / 100, dtype=np.float32), episode_length=50)
    model = AGDPPO("MlpPolicy", env, **SMALL)
    model.learn(64, callback=lambda local_variables, _: model.num_timesteps < stop)
    model.learn(64, reset_num_timesteps=False)
    store = model.replay_buffer
    assert model.world_model.action_normalizer.count == len(store) == stop + 64
    streams, rows = store.recent_starts(len(store))
    changes = store.observations[streams, rows + 1] - store.observations[streams, rows]
    assert np.allclose(changes, 0.01, atol=1e-5)


def test_transitions_loaded_into_a_new_model_enter_its_statistics_once(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=3, terminates=True), **SMALL).learn(96)
    model.save_replay_buffer(tmp_path / "transitions")
    model.save(tmp_path / "model")
    new = AGDPPO("MlpPolicy", ToyEnv(episode_length=3, terminates=True), **SMALL)
    old = AGDPPO.load(tmp_path / "model", env=ToyEnv(episode_length=3, terminates=True), device="cpu")
    for other in (new, old):
        other.load_replay_buffer(tmp_path / "transitions")
        other.learn(32)
        assert other.world_model.action_normalizer.count == 96 + 32
        assert other.world_model.n_terminations == 32 + 10


def test_start_states_are_part_of_the_observed_range() -> None:
    """In tasks of one step, only they hold what matters."""
    space = spaces.Box(-1, 1, (3,))
    env = ToyEnv(space, episode_length=1, terminates=True, observe=lambda step: space.sample() if step == 0 else np.zeros(3))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    store, normalizer = model.replay_buffer, model.world_model.observation_normalizer
    starts = store.observations[store.recent_starts(len(store) * 2)]
    assert len(starts) == 64 and normalizer.count == 2 * 64
    assert np.array_equal(normalizer.low, starts.min(0)) and np.array_equal(normalizer.high, starts.max(0))


@pytest.mark.parametrize("synthetic_ratio", [0, 1.0, lambda progress_remaining: progress_remaining])
@pytest.mark.parametrize("batch_size, fits, fits_real_rows_alone", [(16, True, True), (64, True, False), (48, False, False)])
def test_sb3s_advice_on_minibatches_is_given_unless_imagined_rows_fill_them(
    synthetic_ratio: Any, batch_size: int, fits: bool, fits_real_rows_alone: bool
) -> None:
    arguments = SMALL | {"n_steps": 32, "batch_size": batch_size, "synthetic_ratio": synthetic_ratio}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AGDPPO("MlpPolicy", "Pendulum-v1", **arguments)
    advised = any("You have specified a mini-batch size" in str(warning.message) for warning in caught)
    assert advised != (fits_real_rows_alone if synthetic_ratio == 0 else fits)


def test_warnings_reach_those_who_turn_them_into_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="truncated mini-batch of size 1"):
            AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"n_steps": 64, "batch_size": 63})


def test_waits_for_the_warmup() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 65})
    model.learn(64)
    assert model.rollout_buffer.n_imagined == 0 and model.world_model.n_updates == 0
    model.learn(32, reset_num_timesteps=False)
    assert model.rollout_buffer.n_imagined == 64 and model.world_model.n_updates == 5 * 3


@pytest.mark.parametrize("n_particles", [1, 4])
def test_logs_its_figures(n_particles: int) -> None:
    recorder = Recorder()
    model = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL | {"n_particles": n_particles})
    model.set_logger(Logger(None, [recorder]))
    model.learn(128)
    expected = {
        "world_model_loss",
        "termination_loss",
        "held_out_error_first",
        "held_out_error",
        "n_imagined",
        "masked_share",
        "imagined_advantage_mean",
        "real_advantage_mean",
        "critic_trust",
        "imagined_termination_rate",
        "real_termination_rate",
        "advantage_correlation",
        "fit_time_share",
        "imagine_time_share",
        # Several particles are chosen from, not moved
        *(["guidance_norm"] if n_particles == 1 else []),
    }
    last = recorder.rows[-1]
    assert expected == {key.removeprefix("agd/") for key in last if key.startswith("agd/")}
    assert all(np.isfinite(last[f"agd/{key}"]) for key in expected)
    assert 0 < last["agd/fit_time_share"] + last["agd/imagine_time_share"] < 1


def test_figures_of_imagination_are_not_logged_without_it() -> None:
    recorder = Recorder()
    arguments = SMALL | {"n_particles": 1, "synthetic_ratio": lambda progress: 1.0 if progress > 0.5 else 0.0}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **arguments)
    model.set_logger(Logger(None, [recorder]))
    model.learn(128)
    for figure in ("guidance_norm", "masked_share"):
        assert [f"agd/{figure}" in row for row in recorder.rows if "agd/n_imagined" in row] == [True, False, False, False]


def test_tells_when_imagination_begins(capsys: pytest.CaptureFixture[str]) -> None:
    AGDPPO("MlpPolicy", "Pendulum-v1", verbose=1, **SMALL | {"world_model_warmup": 64}).learn(128)
    assert capsys.readouterr().out.count("Imagination begins after 64 steps") == 1


def test_real_and_imagined_rows_have_the_same_discount_factor() -> None:
    advantages = []
    for gamma in (0.99, 0.5):
        model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
        # SB3 keeps to the one that the buffer was made with
        model.gamma = gamma
        advantages.append(model.learn(64).rollout_buffer.imagined.advantages)
    assert th.equal(*advantages)


def test_advantages_correlate_if_and_only_if_what_is_imagined_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    imagination = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"n_steps": 128}).learn(128).imagination
    windows = imagination.store.windows(
        *imagination.store.starts_since(np.zeros(1, dtype=int)), imagination.world_model.horizon
    )
    monkeypatch.setattr(imagination.store, "windows", lambda *_: windows)
    shuffled = np.random.default_rng(0).permutation(len(windows))
    # Segments that end sooner than in reality count for as long as they last
    half = windows.mask.clone()
    half[:, 2:] = False
    shorter = replace(windows, rewards=th.where(half, windows.rewards, 1e3), mask=half)
    for imagined, lowest, highest in (
        (windows, 0.999, 1.001),
        (shorter, 0.999, 1.001),
        (windows.map(lambda array: array[shuffled]), -0.3, 0.3),
    ):
        monkeypatch.setattr(imagination.world_model, "predict", lambda *_, imagined=imagined: imagined)
        assert lowest < imagination.test()["advantage_correlation"].item() < highest


def test_guides_see_values_within_the_bound_in_the_unit_of_real_advantages() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    state = model.imagination.state
    state.value_range = (-1.0, 2.0)
    for bias, expected in ((-1e4, -1.0), (1e4, 2.0)):
        with th.no_grad():
            model.policy.value_net.bias.fill_(bias)
        assert (model.imagination.critic.values(th.zeros(5, 3)) == expected).all()
    # There is no unit as long as all advantages were the same
    for deviation, unit in ((None, 1.0), (0.0, 1.0), (0.5, 0.5)):
        state.advantage_std = deviation
        assert model.imagination.critic.advantage_std == unit


def test_the_unit_of_advantages_follows_the_real_ones_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    deviations = iter([1.0, 2.0, 2.0])
    monkeypatch.setattr("sb3_agd.agdppo.imagination.real_advantages", lambda _: np.array([-1.0, 1.0]) * next(deviations))
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    units = [model.learn(32, reset_num_timesteps=False).imagination.state.advantage_std for _ in range(3)]
    assert units == pytest.approx([1.0, 1.1, 1.19])


def test_the_setting_of_the_paper_works() -> None:
    paper = {
        "sampler": "ddpm",
        "n_denoising_steps": 128,
        "horizon": 10,
        # Full width is left to the tests of the world model
        "world_model_kwargs": {"network": "mlp", "width": 64, "depth": 6},
        "world_model_gradient_steps": 1,
        "world_model_batch_size": 8,
        "synthetic_ratio": 1.0,
        "guidance": "sag",
        "guidance_scale": 3.0,
        "n_particles": 1,
    }
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | paper).learn(64)
    assert model.rollout_buffer.n_imagined == 32
    # After two rollouts the critic explains nothing, and none of its values is credible: it guides nothing
    model.imagination.state.critic_trust = 1.0
    model.imagination.state.value_range = (-math.inf, math.inf)
    model.imagination.augment(model.rollout_buffer, SigmoidAdvantageGuide(), 3.0, 1, 32)
    assert model.world_model.guidance_norm > 0
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())

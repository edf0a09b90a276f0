"""Advantages, and the bound that real returns set to values."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_agd import AGDPPO
from sb3_agd.imagination.rollout_rows import generalized_advantages


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


def test_values_of_imagined_rows_stay_within_the_margin_of_real_returns() -> None:
    """A critic that claims far more than was ever earned must not be able to teach it to itself."""
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=True), **SMALL).learn(64)
    with th.no_grad():
        model.policy.value_net.bias.fill_(1e4)
    imagination = model.imagination
    imagined, _ = imagination.imagine_rows(None, 0.0, 1, 64)
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

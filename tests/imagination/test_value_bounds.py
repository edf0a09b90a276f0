"""Advantages, and the bound that real rewards set to values."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.imagination.rollout_rows import generalized_advantages
from sb3_agd.imagination.value_bounds import attainable_range


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


def test_the_attainable_range_is_that_of_the_extreme_rewards_at_each_step() -> None:
    assert attainable_range(-2.0, 3.0, gamma=0.9) == pytest.approx((-20, 30))
    # An episode may end at once, with nothing
    assert attainable_range(-2.0, -1.0, gamma=0.9) == pytest.approx((-20, 0))
    assert attainable_range(1.0, 2.0, gamma=0.9) == pytest.approx((0, 20))
    # Sums without discount are bounded, too
    assert attainable_range(-1.0, 1.0, gamma=1.0) == pytest.approx((-10_000, 10_000))


@pytest.mark.parametrize("settings", [{}, {"buffer_size": 10}])
def test_rewards_of_transitions_that_are_not_stored_count_for_the_bound(settings: dict[str, Any]) -> None:
    class WithoutLastObservations(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            if len(settings) == 0 and self.n_steps > 8:
                for info in infos:
                    info.pop("terminal_observation", None)
            self.n_steps += 1
            return observations, rewards, dones, infos

        n_steps = 0

    # Nothing but the end of an episode is rewarded, or nothing but the second step of the training
    reward = (lambda step: float(step == 2)) if settings else (lambda step: float(step % 8 == 0 and step > 8))
    env = WithoutLastObservations(DummyVecEnv([lambda: ToyEnv(episode_length=8, terminates=True, reward=reward)]))
    model = AGDPPO("MlpPolicy", env, gamma=0.9, **SMALL | settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(64)
    assert model.imagination.state.value_range == pytest.approx((0, 10))


def test_values_of_imagined_rows_stay_within_the_attainable_range() -> None:
    """A critic that claims far more than can be earned must not be able to teach it to itself."""
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=True), **SMALL).learn(64)
    with th.no_grad():
        model.policy.value_net.bias.fill_(1e4)
    imagined, _ = model.imagination.imagine_rows(NO_GUIDANCE, 64)
    assert imagined.returns.max() <= 100
    assert imagined.advantages.abs().max() <= 1000


class Bias(BaseCallback):
    """Lets the critic claim the same of each state."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def _on_rollout_start(self) -> None:
        with th.no_grad():
            self.model.policy.value_net.weight.fill_(0)
            self.model.policy.value_net.bias.fill_(self.value)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("terminates", [True, False], ids=["terminations", "time limits"])
def test_value_targets_of_real_rows_stay_within_the_attainable_range_too(terminates: bool) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=terminates), **SMALL)
    model.learn(64, Bias(1e4))
    assert model.imagination.state.value_range == pytest.approx((0, 100))
    buffer = model.rollout_buffer
    assert buffer.returns.min() >= 0 and buffer.returns.max() <= np.float32(100)
    # SB3 adds the value of the last state if a time limit cuts an episode off
    assert buffer.rewards.max() == pytest.approx(1 if terminates else 1 + 0.99 * 100)
    assert np.abs(buffer.advantages).max() < 200
    # PPO's `clip_range_vf` is about what the critic said
    assert buffer.values.min() > 1e3


@pytest.mark.parametrize("value", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("gamma, gae_lambda", [(1.0, 0.9), (0.99, 1.0)])
def test_advantages_of_attainable_values_are_those_of_sb3(value: float, gamma: float, gae_lambda: float) -> None:
    """Also if no episode has earned such a return yet."""
    env = ToyEnv(episode_length=8, terminates=True, reward=lambda step: float(step % 8 == 0))
    model = AGDPPO("MlpPolicy", env, gamma=gamma, gae_lambda=gae_lambda, **SMALL).learn(32, Bias(value))
    buffer = model.rollout_buffer
    assert buffer.n_imagined > 0
    deltas = np.full(8, (gamma - 1) * value)
    deltas[-1] = 1 - value
    expected = [sum((gamma * gae_lambda) ** later * delta for later, delta in enumerate(deltas[step:])) for step in range(8)]
    np.testing.assert_allclose(buffer.advantages.reshape(4, 8), np.tile(expected, (4, 1)), atol=1e-5)


def test_the_bound_on_values_does_not_depend_on_the_critic() -> None:
    ranges = []
    for bias in (0.0, 1e4):
        model = AGDPPO("MlpPolicy", ToyEnv(episode_length=10, terminates=True), **SMALL)
        model.learn(32, Bias(bias))
        ranges.append(model.imagination.state.value_range)
    assert ranges[0] == ranges[1]


def test_the_bound_on_values_is_in_the_critics_units() -> None:
    env = VecNormalize(DummyVecEnv([lambda: ToyEnv(episode_length=10, terminates=True)]))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    _, high = model.imagination.state.value_range
    assert high == pytest.approx(100 * env.normalize_reward(np.ones(1))[0])


def test_a_model_loaded_without_its_transitions_keeps_its_bound_on_values(tmp_path: Path) -> None:
    AGDPPO("MlpPolicy", ToyEnv(reward=lambda _: 5.0), **SMALL).learn(64).save(tmp_path / "model")
    model = AGDPPO.load(tmp_path / "model", ToyEnv(reward=lambda _: 1.0))
    model.learn(32, reset_num_timesteps=False)
    assert model.imagination.state.value_range == pytest.approx((0, 500))

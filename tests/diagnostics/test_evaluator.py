"""Imagined segments, and what really happens after the same actions."""

from functools import partial
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_agd import AGDPPO, ExponentialAdvantageGuide
from sb3_agd.diagnostics.evaluator import Evaluator, Outcome, StartStates, repeated, segment_advantages
from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.imagination import NO_GUIDANCE, Critic, Guidance
from sb3_agd.world_model import Segments

N_STARTS = 3


def test_segment_advantage_is_the_return_beyond_the_value_of_the_start() -> None:
    th.manual_seed(0)
    gamma, horizon = 0.9, 5
    critic = Critic(lambda states: states[:, 0], lambda rewards: rewards, gamma, advantage_std=2.0)
    states, rewards = th.randn(3, horizon + 1, 2), th.randn(3, horizon)
    terminations = th.zeros(3, horizon, dtype=th.bool)
    terminations[1, 2] = True
    mask = th.ones(3, horizon, dtype=th.bool)
    mask[1, 3:] = False
    advantages = segment_advantages(critic, Segments(states, th.zeros(3, horizon, 1), rewards, terminations, mask))
    discounts = gamma ** th.arange(horizon)
    expected = (discounts * rewards * mask).sum(1) + gamma**horizon * states[:, -1, 0] - states[:, 0, 0]
    expected[1] -= gamma**horizon * states[1, -1, 0]
    th.testing.assert_close(advantages, expected / 2.0)


def measured(model: AGDPPO, seed: int) -> tuple[StartStates, Outcome, np.ndarray | None]:
    """Everything that an evaluator measures."""
    evaluator = Evaluator(model, partial(gym.make, "Hopper-v5"), seed)
    start_states = evaluator.collect_start_states(N_STARTS)
    outcome = evaluator.evaluate(start_states, Guidance(ExponentialAdvantageGuide(), "select", 5.0, 4))
    return start_states, outcome, evaluator.monte_carlo_returns(start_states, outcome, "")


def test_the_same_seed_gives_the_same_measurements(hopper: AGDPPO) -> None:
    first, same, other = (measured(hopper, seed) for seed in (1, 1, 2))
    assert th.equal(first[0].states, same[0].states)
    assert th.equal(first[1].imagined.observations, same[1].imagined.observations)
    assert np.array_equal(first[1].replayed, same[1].replayed)
    assert np.array_equal(first[2], same[2])
    assert not th.equal(first[0].states, other[0].states)


def test_errors_vanish_if_the_world_model_is_the_environment(hopper: AGDPPO, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(hopper, partial(gym.make, "Hopper-v5"), seed=0)
    start_states = evaluator.collect_start_states(N_STARTS)
    assert start_states.snapshots is not None
    imagine = evaluator.imagination.imagine

    def simulate(*arguments: Any) -> tuple[Segments[th.Tensor], th.Tensor]:
        segments, actions = imagine(*arguments)
        return evaluator.simulator.replay(repeated(start_states.snapshots), segments), actions

    monkeypatch.setattr(evaluator.imagination, "imagine", simulate)
    outcome = evaluator.evaluate(start_states, NO_GUIDANCE)
    assert th.equal(outcome.imagined.observations, outcome.real.observations)
    assert np.array_equal(outcome.claimed, outcome.replayed)
    errors = segment_errors(evaluator.imagination.world_model, outcome.imagined, outcome.real)
    assert errors["states"].max() == 0 < errors["persistence"].min()


def test_monte_carlo_returns_are_those_of_the_environment(toy_agent: AGDPPO) -> None:
    # Rewards are 1, and an episode is over after 20 steps
    evaluator = Evaluator(toy_agent, partial(ToyEnv, terminates=True), seed=0)
    start_states = evaluator.collect_start_states(1)
    outcome = evaluator.evaluate(start_states, NO_GUIDANCE)
    returns = evaluator.monte_carlo_returns(start_states, outcome, "") * evaluator.imagination.critic.advantage_std
    # Then 4 steps of the policy, until 0.5 ** 4 < 0.1, and the critic's value
    n_steps = toy_agent.horizon + 4
    states = th.as_tensor(np.stack([evaluator.env.unwrapped._observation() for _ in range(50)]))
    assert evaluator.imagination.critic.values(states).abs().max() < 10
    np.testing.assert_allclose(returns, 2 * (1 - 0.5**n_steps), atol=10 * 0.5**n_steps)


def test_the_return_after_a_terminal_state_is_zero(toy_agent: AGDPPO) -> None:
    evaluator = Evaluator(toy_agent, partial(ToyEnv, terminates=True, episode_length=3), seed=0)
    evaluator.simulator.reset(0)
    actions = np.zeros((toy_agent.horizon, 2), dtype=np.float32)
    assert evaluator._monte_carlo_return(evaluator.simulator.snapshot(), actions) == pytest.approx(1 + 0.5 + 0.25)


class ModeChecker(BaseFeaturesExtractor):
    """Fails if it is used in training mode."""

    def __init__(self, observation_space: gym.Space):
        super().__init__(observation_space, 3)
        self.is_checking = False

    def forward(self, observations: th.Tensor) -> th.Tensor:
        assert not (self.is_checking and self.training)
        return observations


def test_the_policy_is_used_in_evaluation_mode() -> None:
    policy_kwargs = {"net_arch": [16], "features_extractor_class": ModeChecker}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"policy_kwargs": policy_kwargs}).learn(64)
    model.policy.set_training_mode(True)
    model.policy.features_extractor.is_checking = True
    evaluator = Evaluator(model, partial(gym.make, "Pendulum-v1"), seed=0)
    start_states = evaluator.collect_start_states(1)
    evaluator.monte_carlo_returns(start_states, evaluator.evaluate(start_states, NO_GUIDANCE), "")


class Rebuilt(gym.Env):
    """A slide whose simulator is compiled anew for each episode, each second time with one more body."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self) -> None:
        self.n_episodes = 0

    def _observation(self) -> np.ndarray:
        return np.array([self.data.qpos[0], self.data.qvel[0], 0], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.n_episodes += 1
        body = "<body><joint type='slide' axis='1 0 0' name='{0}'/><geom type='sphere' size='.1'/></body>"
        bodies = "".join(body.format(f"joint{number}") for number in range(1 + self.n_episodes % 2))
        self.model = mujoco.MjModel.from_xml_string(
            f"<mujoco><worldbody>{bodies}</worldbody><actuator><motor joint='joint0'/></actuator></mujoco>"
        )
        self.data = mujoco.MjData(self.model)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        self.data.ctrl[:] = action[0]
        mujoco.mj_step(self.model, self.data)
        self.n_steps += 1
        return self._observation(), float(self.data.qvel[0]), False, self.n_steps >= 10, {}


def test_an_environment_with_another_simulator_in_each_episode_is_not_restored() -> None:
    model = AGDPPO("MlpPolicy", Rebuilt(), **SMALL).learn(64)
    evaluator = Evaluator(model, Rebuilt, seed=0)
    start_states = evaluator.collect_start_states(N_STARTS)
    assert start_states.snapshots is None
    outcome = evaluator.evaluate(start_states, NO_GUIDANCE)
    assert outcome.real is None and outcome.replayed is None
    assert evaluator.monte_carlo_returns(start_states, outcome, "") is None

"""The recorder stores what happened in the environments."""

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from vector_environments import BareVecEnv

from sb3_agd import (
    AGDPPO,
    AugmentedRolloutBuffer,
    GuidanceCallback,
)
from sb3_agd.world_model import Segments


def recorded(env: ToyEnv, steps: int = 64) -> Segments:
    """All transitions that AGDPPO stores while it trains in the environment."""
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(steps)
    return model.replay_buffer.segments(*model.replay_buffer.recent_transitions(steps + steps), horizon=1)


@pytest.mark.parametrize("terminates", [False, True])
def test_truncations_are_not_terminations_and_the_last_state_of_an_episode_is_stored(terminates: bool) -> None:
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


def test_observations_and_rewards_are_stored_in_raw_units_under_vec_normalize() -> None:
    env = VecNormalize(
        DummyVecEnv([lambda: ToyEnv(episode_length=7, observe=lambda step: np.full(3, 100.0 + step, np.float32))])
    )
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    transitions = model.replay_buffer.segments(*model.replay_buffer.recent_transitions(200), horizon=1)
    assert np.allclose(transitions.observations[:, 1] - transitions.observations[:, 0], 1.0, atol=1e-3)
    assert th.all(transitions.rewards == 1)


def test_actions_are_stored_as_the_environment_received_them() -> None:
    env = ToyEnv(action_space=spaces.Box(-0.1, 0.1, (2,)))
    transitions = recorded(env)
    assert np.allclose(transitions.actions[:, 0].numpy(), np.stack(env.received))
    assert np.abs(transitions.actions.numpy()).max() <= np.float32(0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_error_about_a_value_that_is_not_finite_names_the_environment_and_the_step(value: float, what: str) -> None:
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
def test_training_continues_after_a_value_that_is_not_finite_under_vec_normalize(what: str, step: int, stacked: bool) -> None:
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


def test_error_about_an_action_that_is_not_finite_names_the_environment_and_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # The observation after a bad action is bad, too
    model = AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", 2), **SMALL)
    forward = model.policy.forward

    def bad(observations: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_probs = forward(observations)
        actions[1, 0] = np.nan if model.num_timesteps == 18 else 0.0
        return actions, values, log_probs

    monkeypatch.setattr(model.policy, "forward", bad)
    with pytest.raises(ValueError, match="action in environment 1 at step 20"):
        model.learn(64)


class AddedOutside(VecEnvWrapper):
    """Adds constants to observations and rewards."""

    def reset(self) -> np.ndarray:
        return self.venv.reset() + 5

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations + 5, rewards + 100, dones, infos


def test_output_of_a_wrapper_around_vec_normalize_is_stored_as_it_is() -> None:
    env = AddedOutside(VecNormalize(DummyVecEnv([ToyEnv])))
    model = AGDPPO("MlpPolicy", env, gamma=0.5, **SMALL).learn(64)
    buffer = model.rollout_buffer
    assert buffer.returns.min() > 100
    assert buffer.imagined is not None
    assert buffer.imagined.observations.mean().item() == pytest.approx(buffer.observations.mean(), abs=1)
    low, high = model.imagination.state.value_range
    assert low < buffer.returns.min() and buffer.returns.max() < high


@pytest.mark.parametrize("n_rounds", [1, 3])
@pytest.mark.parametrize("terminates", [False, True])
def test_policy_gets_rewards_that_a_callback_has_changed(n_rounds: int, terminates: bool) -> None:
    class Bonus(BaseCallback):
        def _on_step(self) -> bool:
            self.locals["rewards"] += 0.25
            return True

    env, settings = ToyEnv(episode_length=10, terminates=terminates), SMALL | {"n_steps": n_rounds * 32, "gamma": 0.5}
    model = AGDPPO("MlpPolicy", env, **settings).learn(n_rounds * 64, Bonus())
    # At a time limit, SB3 adds the value of the last state
    is_cut_off = np.isin(np.arange(n_rounds * 32), [step for (step, _), _ in model.imagination.recorder.cut_off_observations])
    assert is_cut_off.any() == (not terminates)
    np.testing.assert_allclose(model.rollout_buffer.rewards[~is_cut_off], 1.25)
    np.testing.assert_allclose(np.stack(model.imagination.recorder.rewards), 1.25, atol=1e-5)


@pytest.mark.parametrize("last", [5.0, 500.0])
def test_a_warning_names_last_states_that_vec_normalize_has_clipped(last: float) -> None:
    def observe(step: int) -> np.ndarray:
        return np.full(3, last if step == 10 else step / 5, dtype=np.float32)

    env = VecNormalize(DummyVecEnv([lambda: ToyEnv(spaces.Box(-1e3, 1e3, (3,)), episode_length=10, observe=observe)]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = AGDPPO("MlpPolicy", env, **SMALL).learn(32)
    warned = any("VecNormalize has clipped the last state" in str(warning.message) for warning in caught)
    highest = model.replay_buffer.observations[0, : model.replay_buffer.position[0]].max()
    assert warned == (highest < last)
    assert warned == (last == 500)


def make_counter() -> ToyEnv:
    """Its observations say how many steps of the episode are over, in thousandths."""
    return ToyEnv(episode_length=1000, observe=lambda step: np.full(3, step / 1000, dtype=np.float32))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mover", ["reset", "evaluation", "training without the callback", "training that was stopped"])
def test_no_false_transition_is_stored_if_other_code_moves_the_environments(mover: str, normalize: bool) -> None:
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
    buffer = callback.imagination.replay_buffer
    env_indices, indices = buffer.recent_transitions(1000)
    steps = (
        (1000 * buffer.observations[env_indices, indices, 0]).round(),
        (1000 * buffer.observations[env_indices, indices + 1, 0]).round(),
    )
    assert len(indices) == (64 if mover == "training that was stopped" else 128)
    assert np.array_equal(steps[1] - steps[0], np.ones(len(indices)))


def test_no_false_transition_is_stored_if_a_callback_evaluates_in_the_training_environment() -> None:
    class Evaluation(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 10 == 0:
                evaluate_policy(self.model, self.training_env, n_eval_episodes=1, warn=False)
            return True

    def observe(step: int) -> np.ndarray:
        return np.full(3, step / 100, dtype=np.float32)

    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=7, observe=observe), **SMALL).learn(64, Evaluation())
    transitions = model.replay_buffer.segments(*model.replay_buffer.recent_transitions(1000), horizon=1)
    # Each evaluation moves the environment, so that the step after it has no known start
    assert len(transitions) == 64 - 6
    assert np.allclose(transitions.observations[:, 1] - transitions.observations[:, 0], 0.01)


def test_dones_may_be_numbers() -> None:
    class FloatDones(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            return observations, rewards, dones.astype(np.float32), infos

    model = AGDPPO("MlpPolicy", FloatDones(make_vec_env(ToyEnv)), **SMALL).learn(64)
    assert model.rollout_buffer.n_imagined > 0


@pytest.mark.filterwarnings("ignore:The transitions may not fit into memory")
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (7056,), dtype=np.uint8),
        spaces.Discrete(50_000),
        spaces.MultiDiscrete([1000] * 20),
    ],
    ids=["box", "discrete", "multi-discrete"],
)
def test_agents_with_large_flat_observations_train(space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(space), **SMALL).learn(64)
    assert model.rollout_buffer.n_imagined > 0
    assert len(model.replay_buffer) == 64


def test_agents_with_float_frame_stacks_train() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.Box(-1, 1, (4, 5, 5))), **SMALL).learn(64)
    assert model.rollout_buffer.n_imagined > 0
    assert model.imagine(np.zeros((2, 4, 5, 5), dtype=np.float32)).observations.shape == (2, 5, 100)


class SameInfo(ToyEnv):
    """Counts its steps in its observations, and returns one and the same info object at each reset."""

    def __init__(self) -> None:
        super().__init__(episode_length=50, observe=lambda step: np.full(3, step / 1000, dtype=np.float32))
        self.info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return super().reset(seed=seed, options=options)[0], self.info


def make_same_info(kind: str) -> VecEnv:
    """
    :param kind: Kind of vectorised environment
    :return: Two environments
    """
    env: VecEnv = BareVecEnv(SameInfo) if "foreign" in kind else DummyVecEnv([SameInfo] * 2)
    if kind == "processes":
        env = SubprocVecEnv([SameInfo] * 2, start_method="fork")
    if "normalised" in kind:
        env = VecNormalize(env)
    return VecFrameStack(env, 1) if kind == "stacked" else env


class Resetting(BaseCallback):
    """
    Resets the environments at the end of each rollout, as some callbacks for evaluation do.

    :param moment: ``"end"`` or ``"start"`` of the rollout
    :param updates_model: Whether the algorithm gets the new observations
    """

    def __init__(self, moment: str, updates_model: bool):
        super().__init__()
        self.moment = moment
        self.updates_model = updates_model

    def _reset(self) -> None:
        observations = self.training_env.reset()
        if self.updates_model:
            self.model._last_obs = observations
            self.model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)

    def _on_rollout_end(self) -> None:
        if self.moment == "end":
            self._reset()

    def _on_rollout_start(self) -> None:
        if self.moment == "start":
            self._reset()

    def _on_step(self) -> bool:
        return True


def n_false_transitions(model: AGDPPO) -> int:
    """Number of stored transitions that are not a step forward."""
    buffer = model.replay_buffer
    segments = buffer.segments(*buffer.recent_transitions(10_000), horizon=1)
    steps = (1000 * segments.observations[..., 0]).round()
    return int((steps[:, 1] - steps[:, 0] != 1).sum())


KINDS = ["dummy", "processes", "stacked", "normalised", "normalised foreign", "foreign"]


@pytest.mark.parametrize("updates_model", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_transition_is_stored_if_a_callback_resets_at_the_end_of_rollouts(kind: str, updates_model: bool) -> None:
    if kind == "foreign" and not updates_model:
        pytest.skip("Neither the environments nor the algorithm show that they were reset")
    model = AGDPPO("MlpPolicy", make_same_info(kind), **SMALL).learn(640, Resetting("end", updates_model))
    model.env.close()
    assert n_false_transitions(model) == 0
    # Otherwise 9 rollouts lack their first step, whose start is unknown. Frame stacks write into the observations of SB3
    assert len(model.replay_buffer) == (640 if updates_model or kind == "stacked" else 640 - 2 * 9)


def test_no_false_transition_is_stored_if_a_callback_resets_at_the_start_of_rollouts() -> None:
    model = AGDPPO("MlpPolicy", make_same_info("dummy"), **SMALL).learn(640, Resetting("start", updates_model=True))
    assert n_false_transitions(model) == 0
    # The first rollout starts with the observations of a reset anyway
    assert len(model.replay_buffer) == 640 - 2 * 9


@pytest.mark.parametrize("n_steps", [1, 30])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_steps_by_hand_between_trainings_leave_no_false_transition(kind: str, n_steps: int) -> None:
    model = AGDPPO("MlpPolicy", make_same_info(kind), **SMALL).learn(64)
    for _ in range(n_steps):
        model.env.step(np.zeros((2, 2), dtype=np.float32))
    model.learn(64, reset_num_timesteps=False)
    model.env.close()
    assert n_false_transitions(model) == 0
    assert len(model.replay_buffer) == 128


def test_environments_that_were_not_moved_are_not_reset() -> None:
    seen: list[float] = []
    model = AGDPPO("MlpPolicy", make_same_info("dummy"), **SMALL).learn(64)
    callback = ConvertCallback(lambda local_variables, _: seen.append(local_variables["new_obs"][0, 0]) or True)
    model.learn(64, callback, reset_num_timesteps=False)
    assert seen[0] == pytest.approx(0.033)
    assert n_false_transitions(model) == 0 and len(model.replay_buffer) == 128

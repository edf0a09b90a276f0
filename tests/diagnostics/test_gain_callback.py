"""The gain of guidance during training, as claimed by the world model and as measured in a real environment."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.diagnostics import GuidanceGainCallback
from sb3_agd.diagnostics.evaluator import Evaluator, StartStates, repeated
from sb3_agd.imagination import Imagination
from sb3_agd.world_model import Segments


@pytest.fixture(autouse=True)
def perfect_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic that explains nothing would not guide."""
    monkeypatch.setattr("sb3_agd.imagination.critic_trust.explained_variance", lambda *_: 1.0)


class KeptLog(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def train(env: VecEnv, callback: BaseCallback | None, n_rollouts: int = 4, **kwargs: Any) -> tuple[AGDPPO, list[dict]]:
    """Model after some rollouts, and what was logged."""
    log = KeptLog()
    model = AGDPPO("MlpPolicy", env, **SMALL | kwargs)
    model.set_logger(Logger(None, [log]))
    return model.learn(n_rollouts * model.n_steps * model.n_envs, callback), log.rows


class GlobalNoise(gym.ObservationWrapper):
    """
    Draws noise from the global generators, as the policy does.

    :param env: The environment
    :param scale: Scale of the noise. With 0, observations do not depend on what is drawn
    """

    def __init__(self, env: gym.Env, scale: float):
        super().__init__(env)
        self.scale = scale

    def observation(self, observation: np.ndarray) -> np.ndarray:
        noise = np.random.normal() + random.random() + th.rand(()).item()
        return observation + self.scale * noise


def make_noisy(scale: float) -> gym.Env:
    """An environment with global noise."""
    return GlobalNoise(gym.make("InvertedPendulum-v5"), scale)


def test_training_is_the_same_bit_for_bit_with_and_without_the_callback() -> None:
    def run(callback: BaseCallback | None) -> tuple[AGDPPO, list[dict]]:
        return train(VecNormalize(DummyVecEnv([partial(make_noisy, 0.01)] * 2)), callback, n_steps=16)

    models, logs = zip(run(GuidanceGainCallback(partial(make_noisy, 0.0), 1, 2)), run(None), strict=True)
    for name in ("policy", "world_model"):
        for first, second in zip(*(getattr(model, name).state_dict().values() for model in models), strict=True):
            assert th.equal(first, second)
    assert np.array_equal(models[0].replay_buffer.observations, models[1].replay_buffer.observations)
    assert any("agd/true_gain" in row for row in logs[0])
    assert not any("agd/true_gain" in row for row in logs[1])


def test_gains_are_logged_in_every_nth_rollout_with_a_trained_world_model() -> None:
    callback = GuidanceGainCallback(partial(gym.make, "Hopper-v5"), every_n_rollouts=2, n_starts=2)
    _, rows = train(make_vec_env("Hopper-v5"), callback, 6, world_model_warmup=65)
    gains = [(row.get("agd/claimed_gain"), row.get("agd/true_gain")) for row in rows]
    # There are enough transitions from the third rollout on
    measured = [number for number, gain in enumerate(gains, 1) if gain != (None, None)]
    assert measured == [4, 6]
    assert all(np.isfinite(gains[number - 1]).all() for number in measured)


class CallCounter(gym.Wrapper):
    """Counts calls in a dictionary that is shared by all instances."""

    counts: dict[str, int]

    def step(self, action: Any) -> Any:
        self.counts["step"] += 1
        return self.env.step(action)

    def close(self) -> None:
        self.counts["close"] += 1
        self.env.close()


def counting(counts: dict[str, int]) -> Callable[[], gym.Env]:
    """Maker of environments that count their calls."""
    counter = type("Counter", (CallCounter,), {"counts": counts})
    return lambda: counter(gym.make("InvertedPendulum-v5"))


def test_only_the_given_environment_is_stepped_and_it_is_closed_at_the_end() -> None:
    training, given = ({"step": 0, "close": 0} for _ in range(2))
    callback = GuidanceGainCallback(counting(given), every_n_rollouts=1, n_starts=2)
    model, rows = train(DummyVecEnv([counting(training)]), callback)
    assert training == {"step": model.num_timesteps, "close": 0}
    assert given["step"] > 0 and given["close"] == 1
    assert sum("agd/true_gain" in row for row in rows) == len(rows) == 4


def test_the_given_environment_is_closed_after_an_exception_once_training_goes_on() -> None:
    def stop(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == 40:
            raise KeyboardInterrupt
        return True

    given = {"step": 0, "close": 0}
    callback = GuidanceGainCallback(counting(given), n_starts=2)
    model = AGDPPO("MlpPolicy", "InvertedPendulum-v5", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, [callback, ConvertCallback(stop)])
    assert given["close"] == 0
    model.learn(32, callback)
    assert given["close"] == 2


def test_the_callback_is_refused_where_it_does_not_see_each_rollout() -> None:
    for callback in (GuidanceGainCallback(ToyEnv), CallbackList([GuidanceGainCallback(ToyEnv)])):
        with pytest.raises(ValueError, match="GuidanceGainCallback must be called at each step, but EveryNTimesteps"):
            AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64, EveryNTimesteps(32, callback))


@pytest.mark.parametrize("settings", [{"guidance": "none"}, {"guidance_scale": 0.0}])
def test_nothing_is_measured_without_guidance(settings: dict[str, Any]) -> None:
    given = {"step": 0, "close": 0}
    callback = GuidanceGainCallback(counting(given), every_n_rollouts=1, n_starts=2)
    _, rows = train(make_vec_env("InvertedPendulum-v5"), callback, **settings)
    assert not any("agd/claimed_gain" in row for row in rows)
    # Once, when training begins, to see whether the environment can be restored
    n_collected = 2 * 25 + SMALL["horizon"]
    assert n_collected < given["step"] <= n_collected + 2 * SMALL["horizon"]


def test_the_true_gain_is_the_claimed_one_if_the_world_model_is_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = Evaluator.collect_start_states

    def collect_and_simulate(evaluator: Evaluator, n_starts: int) -> StartStates:
        start_states = collect(evaluator, n_starts)
        imagine = Imagination.imagine

        def simulate(*arguments: Any) -> tuple[Segments[th.Tensor], th.Tensor]:
            segments, actions = imagine(evaluator.imagination, *arguments)
            return evaluator.simulator.replay(repeated(start_states.snapshots), segments), actions

        if evaluator.model.num_timesteps > 0:
            monkeypatch.setattr(evaluator.imagination, "imagine", simulate)
        return start_states

    monkeypatch.setattr(Evaluator, "collect_start_states", collect_and_simulate)
    callback = GuidanceGainCallback(partial(gym.make, "HalfCheetah-v5"), every_n_rollouts=4, n_starts=2)
    _, rows = train(make_vec_env("HalfCheetah-v5", seed=0), callback, guidance="eag", guidance_scale=5.0)
    assert rows[-1]["agd/claimed_gain"] == pytest.approx(rows[-1]["agd/true_gain"], abs=1e-5)
    assert rows[-1]["agd/true_gain"] > 0


class HiddenState(ToyEnv):
    """Cannot be restored, because its state is not in its attributes."""

    count = 0

    def _observation(self) -> np.ndarray:
        HiddenState.count += 1
        return np.array([np.sin(HiddenState.count), np.cos(HiddenState.count), 0], dtype=np.float32)


@pytest.mark.parametrize(
    ("algorithm", "make_env", "message"),
    [
        (AGDPPO, HiddenState, "`make_env` of GuidanceGainCallback: the environment cannot be restored"),
        (AGDPPO, partial(ToyEnv, action_space=spaces.Discrete(2)), r"environment's action space Discrete\(2\) is not"),
        (PPO, ToyEnv, "GuidanceGainCallback needs AGDPPO, not PPO"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    algorithm: type[PPO], make_env: Callable[[], gym.Env], message: str
) -> None:
    env = ToyEnv()
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu").learn(32, GuidanceGainCallback(make_env))
    assert env.total_steps == 0


def test_the_claimed_gain_is_logged_if_the_environment_can_no_longer_be_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    repeats = Evaluator._repeats
    monkeypatch.setattr(
        Evaluator, "_repeats", lambda self, *arguments: self.model.num_timesteps == 0 and repeats(self, *arguments)
    )
    callback = GuidanceGainCallback(partial(gym.make, "InvertedPendulum-v5"), every_n_rollouts=1, n_starts=2)
    with pytest.warns(UserWarning, match="GuidanceGainCallback: the environment cannot be restored"):
        _, rows = train(make_vec_env("InvertedPendulum-v5"), callback)
    assert any("agd/claimed_gain" in row for row in rows)
    assert not any("agd/true_gain" in row for row in rows)


@pytest.mark.parametrize("argument", ["every_n_rollouts", "n_starts"])
def test_bad_arguments_are_refused_by_name(argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be an integer of at least 1, not 0"):
        GuidanceGainCallback(ToyEnv, **{argument: 0})

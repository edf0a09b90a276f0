"""The gain of guidance, as claimed by the world model and as measured in the simulator."""

import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch as th
from environments import SMALL
from gymnasium.wrappers import RecordVideo
from logs import KeptLog
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_agd import AGDPPO, ExponentialAdvantageGuide
from sb3_agd.agdppo import guidance_probe
from sb3_agd.agdppo.guidance_probe import segment_advantages
from sb3_agd.checkpoint.simulator import Simulator
from sb3_agd.imagination import NO_GUIDANCE, Critic, Guidance, imagination
from sb3_agd.world_model import Segments


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


def train(env: VecEnv, monkeypatch: pytest.MonkeyPatch, interval: int, **kwargs: Any) -> tuple[AGDPPO, list[dict[str, Any]]]:
    """
    :param env: The environment
    :param monkeypatch: Fixture
    :param interval: Rollouts from one probe to the next
    :param kwargs: Settings
    :return: Model after some rollouts, and what was logged
    """
    monkeypatch.setattr(guidance_probe, "PROBE_INTERVAL", interval)
    # A critic that explains nothing would guide nothing
    monkeypatch.setattr(imagination, "explained_variance", lambda *_: 1.0)
    log = KeptLog()
    model = AGDPPO("MlpPolicy", env, **{**SMALL, **kwargs})
    model.set_logger(Logger(None, [log]))
    return model.learn(160), log.rows


def test_training_is_the_same_bit_for_bit_with_and_without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(interval: int) -> tuple[AGDPPO, list[dict[str, Any]]]:
        return train(VecNormalize(make_vec_env("Hopper-v5", 2, seed=0)), monkeypatch, interval, n_steps=16)

    models, logs = zip(run(1), run(1000), strict=True)
    for name in ("policy", "world_model"):
        for first, second in zip(*(getattr(model, name).state_dict().values() for model in models), strict=True):
            assert th.equal(first, second)
    assert np.array_equal(models[0].replay_buffer.observations, models[1].replay_buffer.observations)
    gains = [(row["agd/claimed_gain"], row["agd/true_gain"]) for row in logs[0] if "agd/true_gain" in row]
    assert len(gains) >= 1
    assert np.isfinite(gains).all()
    assert not any("agd/true_gain" in row for row in logs[1])


class Curriculum(gym.Wrapper):
    """Shares an attribute with other code, counts its steps, and may hold an object that cannot be pickled."""

    def __init__(self, env: gym.Env, shared: dict[str, int], log: Any = None):
        super().__init__(env)
        self.shared = shared
        self.log = log

    def step(self, action: Any) -> Any:
        self.shared["steps"] += 1
        self.last_action = action
        return self.env.step(action)


def test_a_probe_leaves_shared_attributes_shared_and_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"steps": 0}
    env = DummyVecEnv([lambda: Curriculum(gym.make("Hopper-v5"), shared)])
    _, rows = train(env, monkeypatch, 1)
    assert any("agd/true_gain" in row for row in rows)
    assert env.envs[0].shared is shared and shared["steps"] == 160


def test_unpicklable_environments_are_not_probed(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    shared = {"steps": 0}
    env = DummyVecEnv([lambda: Curriculum(gym.make("Hopper-v5"), shared, log=(step for step in range(10)))])
    _, rows = train(env, monkeypatch, 1)
    assert not any("agd/true_gain" in row for row in rows)
    assert not any("cannot be pickled" in str(warning.message) for warning in recwarn)


class WriteOnly(Exception):
    """Can be pickled, but not be read again."""

    def __init__(self, what: str, why: str):
        super().__init__(what)
        self.why = why


def test_environments_whose_pickle_cannot_be_read_are_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    env = DummyVecEnv([lambda: Curriculum(gym.make("Hopper-v5"), {"steps": 0}, log=WriteOnly("lost", "why"))])
    _, rows = train(env, monkeypatch, 1)
    assert not any("agd/true_gain" in row for row in rows)


def test_the_true_gain_is_the_claimed_one_if_the_world_model_is_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_vec_env("HalfCheetah-v5", seed=0)
    model, _ = train(env, monkeypatch, 1000)
    monkeypatch.setattr(guidance_probe, "PROBE_INTERVAL", 1)
    probe = guidance_probe.GuidanceProbe(model.imagination)
    model.num_timesteps = 1
    probe.record()
    assert len(probe.starts) == 1
    honest = model.imagination.imagine

    def imagine(starts: th.Tensor, *arguments: Any) -> tuple[Segments[th.Tensor], th.Tensor]:
        segments, actions = honest(starts, *arguments)
        return probe._replay(probe_starts, segments), actions

    probe_starts = list(probe.starts)
    monkeypatch.setattr(model.imagination, "imagine", imagine)
    gains = probe.measure(Guidance(ExponentialAdvantageGuide(), "select", 5.0, 4))
    assert gains["claimed_gain"] == pytest.approx(gains["true_gain"], abs=1e-5)
    assert gains["true_gain"] > 0
    probe.starts = probe_starts
    assert probe.measure(NO_GUIDANCE) == {}


class Scaled(VecEnvWrapper):
    """Observations of the same shape, but other values."""

    def reset(self) -> Any:
        return 100 * self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return 100 * observations, rewards, dones, infos


@pytest.mark.parametrize("kind", ["no simulator", "other process", "frame stack", "scaled", "video"])
def test_only_plain_simulators_are_probed(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make_env() -> gym.Env:
        if kind == "video":
            return RecordVideo(gym.make("Hopper-v5", render_mode="rgb_array"), str(tmp_path), episode_trigger=lambda _: False)
        return gym.make("CartPole-v1" if kind == "no simulator" else "Hopper-v5")

    env: VecEnv = SubprocVecEnv([make_env]) if kind == "other process" else DummyVecEnv([make_env])
    if kind == "frame stack":
        env = VecFrameStack(env, 2)
    if kind == "scaled":
        env = Scaled(env)
    model, rows = train(env, monkeypatch, 1)
    env.close()
    assert model.rollout_buffer.n_imagined > 0
    assert not any("agd/true_gain" in row for row in rows)


class Rebuilt(gym.Env):
    """A slide whose simulator is compiled anew for each episode, each second time with one more body."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.n_episodes = 0

    def _observation(self) -> np.ndarray:
        return np.array([self.data.qpos[0], self.data.qvel[0]], dtype=np.float32)

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
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data)
        self.n_steps += 1
        return self._observation(), float(self.data.qvel[0]), False, self.n_steps >= 10, {}


def test_states_of_a_replaced_simulator_are_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = train(DummyVecEnv([Rebuilt]), monkeypatch, 1)
    # What is left is the last of the three episodes of a rollout
    assert any("agd/true_gain" in row for row in rows)


def test_a_failing_probe_causes_one_warning_and_training_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("not while the motor is hot")

    monkeypatch.setattr(Simulator, "replay", refuse)
    with pytest.warns(UserWarning, match="gain of guidance is not measured.*not while the motor is hot") as caught:
        model, rows = train(make_vec_env("Hopper-v5"), monkeypatch, 1)
    assert len([warning for warning in caught if "not measured" in str(warning.message)]) == 1
    assert model.num_timesteps == 160
    assert not any("agd/true_gain" in row for row in rows)


class Noisy(gym.ObservationWrapper):
    """Draws its noise from the global generators, as the policy does."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        noise = np.random.normal() + random.random() + th.rand(()).item()
        return (observation + 0.01 * noise).astype(observation.dtype)


def test_probes_leave_the_global_random_generators_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(interval: int) -> tuple[AGDPPO, list[dict[str, Any]]]:
        return train(DummyVecEnv([lambda: Noisy(gym.make("InvertedPendulum-v5"))]), monkeypatch, interval)

    models, logs = zip(run(1), run(1000), strict=True)
    assert any("agd/true_gain" in row for row in logs[0])
    assert np.array_equal(models[0].replay_buffer.observations, models[1].replay_buffer.observations)


def test_no_snapshots_are_taken_without_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a snapshot was taken")

    monkeypatch.setattr(Simulator, "snapshot", refuse)
    train(make_vec_env("Hopper-v5"), monkeypatch, 1, guidance="none")

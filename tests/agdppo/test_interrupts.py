"""Interrupted trainings: the agent predicts, saves and learns on, and its transitions are those that happened."""

import time
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, GuidanceCallback
from sb3_agd.checkpoint.resume import discard_stale_replies
from sb3_agd.experience.replay_buffer import ReplayBuffer


@pytest.mark.parametrize(
    "moment",
    ["collect_rollouts", "world_model.fit", "rollout_buffer.augment", "train"],
    ids=["collection", "fitting", "imagination", "update"],
)
def test_ctrl_c_leaves_a_model_that_predicts_saves_and_learns_on(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    owner, name = (attrgetter(moment.rpartition(".")[0])(model), moment.split(".")[-1]) if "." in moment else (model, moment)
    whole = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        # After the work is done, when all of its effects are there but nothing that should follow
        whole(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        model.learn(64, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "transitions")
    loaded = AGDPPO.load(tmp_path / "model", env=ToyEnv())
    loaded.load_replay_buffer(tmp_path / "transitions")
    observation = np.zeros(3, dtype=np.float32)
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    for survivor in (model, loaded):
        survivor.learn(64, reset_num_timesteps=False)
        assert survivor.rollout_buffer.n_imagined > 0
        assert all(tensor.isfinite().all() for tensor in survivor.policy.state_dict().values())


def interrupted_in_a_step(step: int) -> ToyEnv:
    """
    :param step: Number of the step that is interrupted
    :return: Environment whose observations tell how many steps the episode has taken
    """

    def reward(total_steps: int) -> float:
        if total_steps == step:
            # The state has changed already
            raise KeyboardInterrupt
        return 1.0

    return ToyEnv(observe=lambda steps: np.full(3, steps, dtype=np.float32), reward=reward)


def states_of_all_transitions(store: ReplayBuffer) -> th.Tensor:
    """
    :param store: Transitions
    :return: Their states and next states, shape (N, 2, observation_dim)
    """
    return store.segments(*store.recent_transitions(len(store)), horizon=1).observations


@pytest.mark.parametrize("step", [25, 40, 45])
def test_ctrl_c_within_a_step_stores_no_transition_that_never_happened(step: int) -> None:
    model = AGDPPO("MlpPolicy", interrupted_in_a_step(step), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.learn(96)
    model.learn(64, reset_num_timesteps=False)
    states = states_of_all_transitions(model.replay_buffer)[..., 0]
    assert len(states) > 64
    assert th.equal(states[:, 1], states[:, 0] + 1)


def test_ctrl_c_while_environments_are_reset_stores_no_transition_that_never_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(observe=lambda steps: np.full(3, steps, dtype=np.float32)), **SMALL).learn(32)
    reset = model.env.reset

    def interrupted() -> None:
        reset()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.env, "reset", interrupted)
        model.learn(32)
    model.learn(64, reset_num_timesteps=False)
    states = states_of_all_transitions(model.replay_buffer)[..., 0]
    assert len(states) > 64
    assert th.equal(states[:, 1], states[:, 0] + 1)


@pytest.mark.parametrize("step", [25, 40, 45])
def test_ctrl_c_with_the_callback_alone_stores_no_transition_that_never_happened(step: int) -> None:
    callback = GuidanceCallback(horizon=4, world_model_warmup=0, world_model_gradient_steps=2, real_steps_per_update=32)
    env = interrupted_in_a_step(step)
    model = A2C("MlpPolicy", env, n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        model.learn(96, callback)
    model.learn(64, callback, reset_num_timesteps=False)
    states = states_of_all_transitions(callback.imagination.replay_buffer)[..., 0]
    assert len(states) > 64
    assert th.equal(states[:, 1], states[:, 0] + 1)
    # An interrupt that is over resets nothing more
    n_episodes = (states[:, 0] == 0).sum()
    model.learn(8, callback, reset_num_timesteps=False)
    states = states_of_all_transitions(callback.imagination.replay_buffer)[..., 0]
    assert (states[:, 0] == 0).sum() == n_episodes + 1


def test_ctrl_c_while_other_processes_step_leaves_a_model_that_learns_on() -> None:
    env = SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    model = AGDPPO("MlpPolicy", env, **SMALL)
    step_wait = env.step_wait

    def interrupted() -> Any:
        if model.num_timesteps == 40:
            # One of the answers was taken, the other is still in its pipe
            env.remotes[0].recv()
            raise KeyboardInterrupt
        return step_wait()

    env.step_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(200)
    # Whoever closes the environments now does not wait for an answer that was taken already
    assert not env.waiting
    env.step_wait = step_wait
    for _ in range(2):
        model.learn(64, reset_num_timesteps=False)
    env.close()
    states = states_of_all_transitions(model.replay_buffer)
    # Positions move by a fiftieth of the velocity
    assert th.allclose(states[:, 1, 0], states[:, 0, 0] + 0.02 * states[:, 0, 1], atol=1e-6)


def test_replies_of_an_interrupted_process_are_discarded() -> None:
    env = SubprocVecEnv([partial(ToyEnv, reward=slow)] * 2)
    actions = np.zeros((2, 2), dtype=np.float32)
    env.reset()
    env.step_async(actions)
    discard_stale_replies(env)
    for remote in env.remotes:
        remote.send(("reset", (None, {})))
    discard_stale_replies(env)
    assert env.reset().shape == (2, 3)
    _, rewards, _, _ = env.step(actions)
    env.close()
    assert rewards.tolist() == [1.0, 1.0]


def slow(step: int) -> float:
    """
    :param step: Number of the step
    :return: The reward, after a while
    """
    time.sleep(0.2)
    return 1.0


def test_a_dead_worker_is_named_and_leaves_a_usable_model(tmp_path: Path) -> None:
    def kill(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == 2 * 40:
            local_variables["env"].processes[1].kill()
        return True

    def make_env() -> VecEnv:
        return SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2)

    env = make_env()
    model = AGDPPO("MlpPolicy", env, **SMALL)
    with pytest.raises(RuntimeError, match=r"environments \[1\] have died at step 80.*can be saved"):
        model.learn(1000, callback=kill)
    with suppress(BrokenPipeError):
        env.close()
    model.save(tmp_path / "model.zip")
    env = make_env()
    model.set_env(env)
    model.learn(64, reset_num_timesteps=False)
    env.close()
    assert model.num_timesteps >= 80 + 64
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_ctrl_c_during_a_fit_leaves_a_usable_world_model() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    updates = iter(range(100))

    def interrupt() -> None:
        if next(updates) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.imagination.fit(3, 16, 1e-3, interrupt)
    assert np.isfinite(model.imagine(np.zeros((4, 3), dtype=np.float32)).observations).all()
    model.learn(64, reset_num_timesteps=False)

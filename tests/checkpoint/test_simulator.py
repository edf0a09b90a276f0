"""Imagined actions carried out in the real environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_agd.checkpoint.simulator import Simulator
from sb3_agd.experience.space_codecs import make_codec
from sb3_agd.world_model import Segments


def make_simulator(env_id: str, **kwargs: Any) -> Simulator:
    env = gym.make(env_id, **kwargs)
    return Simulator(env, make_codec(env.observation_space, "observation"), make_codec(env.action_space, "action"))


def as_segments(states: np.ndarray, actions: np.ndarray) -> Segments[th.Tensor]:
    """Segments with nothing but a start state and actions."""
    nothing = np.zeros(actions.shape[:2], dtype=np.float32)
    repeated = np.repeat(states[:, None], actions.shape[1] + 1, axis=1)
    return Segments(repeated, actions, nothing, nothing > 0, nothing == 0).map(th.from_numpy)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5", "CartPole-v1", "Pendulum-v1"])
def test_a_replay_repeats_what_happened_bit_for_bit(env_id: str) -> None:
    horizon = 12
    simulator = make_simulator(env_id)
    simulator.env.action_space.seed(0)
    observation, _ = simulator.env.reset(seed=0)
    starts, states, actions = [], [], []
    happened: list[list[tuple[np.ndarray, float, bool, bool]]] = []
    for _ in range(3):
        starts.append(simulator.snapshot())
        states.append(simulator.observation_codec.encode(observation[None])[0])
        samples = [np.asarray(simulator.env.action_space.sample())[None] for _ in range(horizon)]
        actions.append(np.concatenate([simulator.action_codec.encode(sample) for sample in samples]))
        happened.append([])
        for action in actions[-1]:
            happened[-1].append(simulator.step(action))
            if happened[-1][-1][-1]:
                break
        observation, _ = simulator.env.reset()
    replayed = simulator.replay(starts, as_segments(np.stack(states), np.stack(actions))).map(lambda tensor: tensor.numpy())
    for number, steps in enumerate(happened):
        for step, (state, reward, termination, over) in enumerate(steps):
            assert replayed.mask[number, step]
            assert np.array_equal(replayed.observations[number, step + 1], state)
            assert replayed.rewards[number, step] == np.float32(reward)
            assert replayed.terminations[number, step] == termination
            if over:
                assert not replayed.mask[number, step + 1 :].any()
                assert (replayed.observations[number, step + 1 :] == state).all()


def test_a_time_limit_ends_a_replay_without_a_termination() -> None:
    simulator = make_simulator("Pendulum-v1", max_episode_steps=5)
    observation, _ = simulator.env.reset(seed=0)
    segments = as_segments(observation[None], np.zeros((1, 8, 1), dtype=np.float32))
    replayed = simulator.replay([simulator.snapshot()], segments)
    assert replayed.mask.sum() == 5
    assert not replayed.terminations.any()

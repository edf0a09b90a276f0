"""Snapshots of environments and of their wrappers."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_agd.checkpoint.env_snapshot import Snapshot, env_layers


class Logging(gym.Wrapper):
    """Counts its steps, and may hold an object that cannot be pickled."""

    def __init__(self, env: gym.Env, log: Any = None):
        super().__init__(env)
        self.n_steps = 0
        self.log = log

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return self.env.step(action)


class WriteOnly(Exception):
    """Can be pickled, but not be read again."""

    def __init__(self, what: str, why: str):
        super().__init__(what)
        self.why = why


@pytest.mark.parametrize("env_id", ["Hopper-v5", "CartPole-v1"])
def test_a_restored_environment_repeats_its_steps(env_id: str) -> None:
    env = Logging(gym.make(env_id))
    layers = env_layers(env)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(5)]
    snapshot = Snapshot.of(layers)
    first = [env.step(action)[0] for action in actions]
    assert env.n_steps == 5
    snapshot.restore(layers)
    assert env.n_steps == 0
    assert np.array_equal(first, [env.step(action)[0] for action in actions])


def test_attributes_that_cannot_be_pickled_are_left_out_by_name() -> None:
    for log in ((step for step in range(10)), WriteOnly("lost", "why")):
        env = Logging(gym.make("CartPole-v1"), log)
        snapshot = Snapshot.of(env_layers(env))
        assert snapshot.left_out == ["Logging.log"]
        env.n_steps = 3
        snapshot.restore(env_layers(env))
        assert env.n_steps == 0
        assert env.log is log


def test_a_snapshot_is_refused_by_environments_with_other_wrappers() -> None:
    snapshot = Snapshot.of(env_layers(Logging(gym.make("CartPole-v1"))))
    with pytest.raises(ValueError, match="cannot be restored: they were wrapped as"):
        snapshot.restore(env_layers(gym.make("CartPole-v1")))

"""Poses of MuJoCo models from observations."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_agd.diagnostics.poses import find_pose, n_skipped, obstacle_to_draw


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5", "Ant-v5"])
def test_the_pose_follows_from_the_observation(env_id: str) -> None:
    env: Any = gym.make(env_id).unwrapped
    state, _ = env.reset(seed=0)
    for _ in range(5):
        state, *_ = env.step(np.full(env.action_space.shape, 0.1))
    positions, velocities = find_pose(env)(env, state, env.data.qpos[: n_skipped(env)])
    np.testing.assert_allclose(positions, env.data.qpos, atol=1e-12)
    # Reacher does not observe the velocity of its target, which stands still
    np.testing.assert_allclose(velocities, env.data.qvel, atol=1e-12)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.FrameStackObservation(env, 2),
        # The space stays the same
        lambda env: gym.wrappers.TransformObservation(env, lambda state: state[::-1], env.observation_space),
    ],
)
def test_what_a_wrapper_has_changed_is_no_pose(wrap: Callable[[gym.Env], gym.Env]) -> None:
    env = gym.make("Hopper-v5")
    # Without a renderer, so that is all that is in the way
    assert "render_mode" in str(obstacle_to_draw(env))
    wrapped = wrap(env)
    obstacle = obstacle_to_draw(wrapped)
    assert obstacle == "the pose of HopperEnv cannot be computed from the observations"

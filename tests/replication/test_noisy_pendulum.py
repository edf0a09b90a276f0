"""The pendulum with a random torque."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sb3_agd  # noqa: F401 (registers the environment)


def velocities(torque_noise: float, n_samples: int, seed: int = 0) -> np.ndarray:
    """Velocities after one step from the same state without torque."""
    env = gym.make("NoisyPendulum-v0", torque_noise=torque_noise).unwrapped
    env.reset(seed=seed)
    found = []
    for _ in range(n_samples):
        env.state = np.array([0.5, 1.0])
        found.append(env.step(np.zeros(1))[0][2])
    return np.array(found)


def test_the_environment_is_registered_and_obeys_the_interface() -> None:
    env = gym.make("NoisyPendulum-v0")
    assert env.spec is not None and env.spec.max_episode_steps == 200
    check_env(env.unwrapped, skip_render_check=True)


def test_the_environment_is_known_before_torch_is_imported() -> None:
    code = "import sys, gymnasium, sb3_agd; print(gymnasium.spec('NoisyPendulum-v0').id, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "NoisyPendulum-v0 False\n", done.stderr


def test_next_states_have_the_spread_of_the_torque() -> None:
    still, random = velocities(0.0, 5), velocities(0.7, 4000)
    assert len(set(still.tolist())) == 1
    # A torque of 1 changes the velocity by 3 m^-1 l^-2 dt = 0.15
    assert random.std() == pytest.approx(0.7 * 0.15, rel=0.05)
    assert random.mean() == pytest.approx(still[0], abs=0.01)
    assert np.array_equal(velocities(0.7, 5), velocities(0.7, 5))


def test_negative_noise_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`torque_noise` must be"):
        gym.make("NoisyPendulum-v0", torque_noise=-1.0)

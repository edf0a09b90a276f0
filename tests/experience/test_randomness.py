"""The warning that a task is random and the world model is not."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_agd import AGDPPO
from sb3_agd.experience import randomness
from sb3_agd.imagination import start_states

SETTINGS = SMALL | {"n_steps": 256, "batch_size": 256, "real_steps_per_update": 256, "synthetic_ratio": 0.1}
DOCUMENTED = {"sampler": "heun", "n_denoising_steps": 16, "world_model_kwargs": {"open_loop_length": 1}}


class Swing(gym.Env):
    """
    A pendulum without gravity that actions push, from random states.

    :param noise: Standard deviation of the random push at each step
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, noise: float):
        self.noise = noise

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.state = 0, self.np_random.normal(size=2)
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        position, speed = self.state
        speed += 0.1 * action[0] - 0.3 * np.sin(position) + self.noise * self.np_random.normal()
        self.state, self.steps = np.array([position + 0.3 * speed, speed]), self.steps + 1
        return self.state.astype(np.float32), -abs(position), False, self.steps == 20, {}


def randomness_warnings(env: gym.Env, n_steps: int = 2048, **changes: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AGDPPO("MlpPolicy", env, **SETTINGS | changes).learn(n_steps)
    return [str(warning.message) for warning in caught if "looks random" in str(warning.message)]


def test_random_task_is_warned_of_once_with_the_setting_that_suits_it() -> None:
    (message,) = randomness_warnings(Swing(noise=0.2))
    for name, value in DOCUMENTED.items():
        assert name in message and str(value).replace("'", '"') in message


@pytest.mark.parametrize("gradient_steps", [1, 50])
def test_deterministic_task_is_not_warned_of_even_if_the_world_model_is_bad(gradient_steps: int) -> None:
    assert not randomness_warnings(Swing(noise=0.0), world_model_gradient_steps=gradient_steps)


def test_setting_that_suits_random_tasks_is_not_recommended_to_those_who_use_it() -> None:
    assert not randomness_warnings(Swing(noise=0.2), 1024, **DOCUMENTED)


def test_more_environments_than_transitions_are_looked_at_may_end_their_episodes_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_envs = 4
    monkeypatch.setattr(randomness, "N_CANDIDATES", n_envs)
    monkeypatch.setattr(start_states, "RECENT_ROWS", n_envs)
    env = make_vec_env(lambda: ToyEnv(episode_length=8), n_envs)
    model = AGDPPO("MlpPolicy", env, **SMALL | {"n_steps": 16}).learn(2 * 16 * n_envs)
    assert model.rollout_buffer.n_imagined > 0

"""What SB3's algorithms and wrappers expect of a vectorised environment: the counterpart of its ``check_env``."""

from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_agd.experience.vec_envs import copied, is_same


def row(observations: Any, index: int) -> Any:
    return {key: part[index] for key, part in observations.items()} if isinstance(observations, dict) else observations[index]


def check_observations(env: VecEnv, observations: Any) -> None:
    assert isinstance(observations, dict) == hasattr(env.observation_space, "spaces")
    for part in observations.values() if isinstance(observations, dict) else [observations]:
        assert isinstance(part, np.ndarray) and len(part) == env.num_envs
    for index in range(env.num_envs):
        assert env.observation_space.contains(row(observations, index)), row(observations, index)


def check_steps(env: VecEnv, n_steps: int) -> int:
    """Number of episodes that end within so many steps of random actions."""
    observations, n_ends = env.reset(), 0
    check_observations(env, observations)
    assert len(env.reset_infos) == env.num_envs
    for _ in range(n_steps):
        before = copied(observations)
        following, rewards, dones, infos = env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
        check_observations(env, following)
        # Algorithms keep what they were given
        assert is_same(before, observations)
        assert rewards.shape == dones.shape == (env.num_envs,)
        assert rewards.dtype == np.float32 and dones.dtype == bool
        assert np.isfinite(rewards).all()
        assert len(infos) == env.num_envs and len({id(info) for info in infos}) == env.num_envs
        for done, info in zip(dones, infos, strict=True):
            assert isinstance(info["TimeLimit.truncated"], bool) and done >= info["TimeLimit.truncated"]
            assert ("terminal_observation" in info) == done
            if done:
                assert env.observation_space.contains(info["terminal_observation"])
        n_ends += int(dones.sum())
        observations = following
    return n_ends


def trajectory(env: VecEnv, seed: int | None, n_steps: int) -> list[Any]:
    """Observations and rewards after a seed, or without a new one, with the same actions each time."""
    if seed is not None:
        env.seed(seed)
    env.action_space.seed(0)
    steps = [(env.reset(), None)]
    for _ in range(n_steps):
        steps.append(env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))[:2])
    return steps


def same_trajectories(some: list[Any], others: list[Any]) -> bool:
    return all(is_same(one[0], other[0]) and np.array_equal(one[1], other[1]) for one, other in zip(some, others, strict=True))


def check_vec_env(env: VecEnv, n_steps: int = 50) -> None:
    """
    :param env: Environments that reset within the step that ends an episode, which some do in so many steps
    :param n_steps: Number of steps to check
    """
    assert check_steps(env, n_steps) > 0
    # A seed counts for one reset
    first, unseeded, second, other = (trajectory(env, seed, 5) for seed in (3, None, 3, 4))
    assert same_trajectories(first, second)
    assert not same_trajectories(first, other) and not same_trajectories(first, unseeded)
    assert env.seed(7) == [7 + index for index in range(env.num_envs)]
    assert env.env_is_wrapped(Monitor) == [False] * env.num_envs
    assert env.env_is_wrapped(Monitor, indices=0) == [False]
    assert env.get_attr("render_mode") == [env.render_mode] * env.num_envs
    assert env.has_attr("action_space") and not env.has_attr("no_such_attribute")
    assert env.unwrapped is env
    env.close()

"""Vectorised environments that are not SB3's own, as other packages have them."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class BareVecEnv(VecEnv):
    """A complete ``VecEnv`` that sets its own attributes and does not call the constructor of the base class."""

    def __init__(self, make_env: Callable[[], gym.Env], n_envs: int = 2):
        self.envs = [make_env() for _ in range(n_envs)]
        self.num_envs = n_envs
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.render_mode = None

    def reset(self) -> np.ndarray:
        return np.stack([env.reset()[0] for env in self.envs])

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = [], [], [], []
        for env, action in zip(self.envs, self.actions, strict=True):
            observation, reward, terminated, truncated, info = env.step(action)
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, _ = env.reset()
            observations.append(observation)
            rewards.append(reward)
            dones.append(terminated or truncated)
            infos.append(info)
        return np.stack(observations), np.array(rewards), np.array(dones), infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(env, attr_name) for env in self.envs]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [None] * self.num_envs


class OverGymnasium(VecEnvWrapper):
    """Around a vector environment of Gymnasium that resets within the last step of an episode."""

    def __init__(self, env_id: str, n_envs: int = 2):
        mode = gym.vector.AutoresetMode.SAME_STEP
        self.venv: Any = gym.make_vec(env_id, n_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
        self.num_envs = n_envs
        self.observation_space, self.action_space = self.venv.single_observation_space, self.venv.single_action_space
        self.render_mode = None

    def reset(self) -> np.ndarray:
        return self.venv.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, several = self.venv.step(self.actions)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in dones]
        for index in np.flatnonzero(dones):
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            infos[index]["terminal_observation"] = several["final_obs"][index]
        return observations, rewards, dones, infos

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [None] * self.num_envs


class Agents:
    """
    Agents of one multi-agent game as a vector environment: their episodes end together, flags are bytes, and there is neither
    ``unwrapped`` nor any other attribute that is not needed.
    """

    def __init__(self, make_env: Callable[[], gym.Env], n_agents: int = 2):
        self.envs = [make_env() for _ in range(n_agents)]
        self.num_envs = n_agents
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space

    def reset(self) -> np.ndarray:
        return np.stack([env.reset()[0] for env in self.envs])

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        steps = [env.step(action) for env, action in zip(self.envs, self.actions, strict=True)]
        observations = np.stack([step[0] for step in steps])
        rewards = np.array([step[1] for step in steps], dtype=np.float32)
        terminations, truncations = (np.array([step[number] for step in steps], dtype=np.uint8) for number in (2, 3))
        infos: list[dict[str, Any]] = [{} for _ in steps]
        if (terminations | truncations).all():
            infos = [{"terminal_observation": observation} for observation in observations]
            observations = self.reset()
        return observations, rewards, terminations, truncations, infos


class OverAgents(VecEnvWrapper):
    """Around :class:`Agents`, without the constructor and without the look-up of attributes in what is wrapped."""

    def __init__(self, venv: Any):
        self.venv = venv
        self.num_envs = venv.num_envs
        self.observation_space, self.action_space = venv.observation_space, venv.action_space

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, terminations, truncations, infos = self.venv.step_wait()
        dones = np.array([bool(terminations[index] or truncations[index]) for index in range(self.num_envs)])
        return observations, rewards, dones, infos

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def getattr_recursive(self, name: str) -> Any:
        raise AttributeError(name)

    def getattr_depth_check(self, name: str, already_found: bool) -> str | None:
        return None

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [None] * self.num_envs

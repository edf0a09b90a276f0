"""``sb3-agd imagine``: a report on what a model imagines, compared with the real environment."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_agd.agdppo import AGDPPO
from sb3_agd.diagnostics.report import imagination_report


class StackedFrames(gym.Wrapper):
    """
    One environment with RL-Zoo's VecFrameStack, and VecNormalize below it if there is one. The world model of an agent that
    was trained with them learned from their observations and rewards.

    :param env: The environment
    :param n_frames: Number of frames in a stack
    :param normalization: VecNormalize, without environments; ``None`` if there is none
    """

    # Not among the attributes, which are the state of an environment: it is constant, and cannot be pickled a second time
    __slots__ = ("normalization",)

    def __init__(self, env: gym.Env, n_frames: int, normalization: VecNormalize | None):
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Box)
        self.frames: StackedObservations = StackedObservations(1, n_frames, env.observation_space)
        self.observation_space = self.frames.stacked_observation_space
        self.normalization = normalization

    def _normalized(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: As the environment gives it
        :return: The same as VecNormalize gives it, with an axis for the number of environments in front
        """
        batch = np.asarray(observation)[None]
        return batch if self.normalization is None else np.asarray(self.normalization.normalize_obs(batch))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self.frames.reset(self._normalized(observation))[0].copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        stacked, _ = self.frames.update(self._normalized(observation), np.zeros(1, dtype=bool), [{}])
        if self.normalization is not None:
            reward = float(self.normalization.normalize_reward(np.asarray(reward)))
        return stacked[0].copy(), reward, terminated, truncated, info


def training_environment(model: Path, env_id: str) -> tuple[dict[str, Any], Callable[[gym.Env], gym.Env] | None]:
    """
    Read what RL-Zoo saved next to an agent about the environment that it was trained in, as its ``enjoy`` does.

    :param model: File of the agent
    :param env_id: Environment ID
    :return: Arguments of the environment, and its wrappers if there are any
    :raises ValueError: If it had a wrapper of vectorized environments
    """
    # As RL-Zoo names it
    folder = model.parent / env_id.rpartition(":")[2].replace("/", "-")
    if not folder.is_dir():
        return {}, None
    # Not at the top: agents that were trained without RL-Zoo do not need it
    from rl_zoo3.utils import get_saved_hyperparams, get_wrapper_class

    from sb3_agd.zoo.settings import read_saved

    settings, _ = get_saved_hyperparams(str(folder))
    if settings.get("vec_env_wrapper"):
        wrappers = settings["vec_env_wrapper"]
        raise ValueError(f"`imagine` plays single environments, which `vec_env_wrapper` ({wrappers}) of {folder} cannot wrap")
    arguments = settings.get("env_kwargs", {})
    command_line = folder / "args.yml"
    if command_line.is_file():
        arguments = read_saved(command_line)["env_kwargs"] or arguments
    wrapper, n_frames = get_wrapper_class(settings), settings.get("frame_stack")
    if n_frames is None:
        return arguments, wrapper
    # Without a frame stack, the model has the statistics of VecNormalize itself. Unpickled like the agent's file
    normalization = pickle.loads((folder / "vecnormalize.pkl").read_bytes()) if settings["normalize"] else None
    return arguments, lambda env: StackedFrames(env if wrapper is None else wrapper(env), n_frames, normalization)


def find_agent(path: Path) -> Path:
    """
    :param path: Path to the file of an agent, whose ending may be left out
    :return: The file
    :raises FileNotFoundError: If there is none
    """
    for file in (path, path.with_name(f"{path.name}.zip")):
        if file.is_file():
            return file
    raise FileNotFoundError(f"argument --model: there is no file {path}")


def run(arguments: argparse.Namespace) -> None:
    """
    Write the report, print its key figures.

    :param arguments: Command line, see :func:`sb3_agd.zoo.parsers.add_imagine_arguments`
    """
    # More threads are slower on small matrices
    th.set_num_threads(1)
    if arguments.n_filmed > 0 and os.name == "posix" and not os.environ.get("DISPLAY"):
        # Without a display, MuJoCo renders through EGL only
        os.environ.setdefault("MUJOCO_GL", "egl")
    file = find_agent(arguments.model)
    env_kwargs, wrapper = training_environment(file, arguments.env)
    env_kwargs = {**env_kwargs, **dict(arguments.env_kwargs)}

    def make_env() -> gym.Env:
        try:
            env = gym.make(arguments.env, render_mode="rgb_array" if arguments.n_filmed > 0 else None, **env_kwargs)
        except (TypeError, AssertionError):
            # It has no such render mode
            env = gym.make(arguments.env, **env_kwargs)
        return env if wrapper is None else wrapper(env)

    report = imagination_report(
        AGDPPO.load(file, device="cpu"),
        make_env,
        arguments.folder,
        arguments.n_starts,
        arguments.guidance,
        arguments.guidance_scale,
        arguments.seed,
        arguments.n_filmed,
        progress_bar=True,
    )
    print_summary(report, arguments.folder)


def print_summary(report: dict[str, Any], folder: Path) -> None:
    """
    :param report: All figures
    :param folder: Where they are
    """
    states = report["errors"]["states"]
    print(f"{report['env']}, {report['timesteps']} steps, guidance {report['guidance']} at {report['guidance_scale']:.2f}")
    print("Error of states [standard deviations]:")
    for name, errors in states.items():
        print(f"  {name}: {errors[0]:.3f} after one step, {errors[-1]:.3f} after {len(errors)}")
    print("Gain of guidance [standard deviations of the one-step advantage]:")
    for kind, figures in report["advantages"].items():
        print(f"  {kind.replace('_', ' ')}: {figures['gain']:.3f} +- {figures['standard_error']:.3f}")
    print(f"Report in {folder.resolve()}")

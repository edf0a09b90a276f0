"""``sb3-agd imagine``: see what a model imagines, and whether it comes true."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
import yaml
from rl_zoo3.utils import EnvironmentName, StoreDict, get_saved_hyperparams, get_wrapper_class

from sb3_agd.agdppo import AGDPPO
from sb3_agd.diagnostics.report import imagination_report


def training_environment(model: Path, env_id: str) -> tuple[dict[str, Any], Callable[[gym.Env], gym.Env] | None]:
    """
    What RL-Zoo wrote down beside an agent about the environment that it was trained in, as its ``enjoy`` reads it.

    :param model: File of the agent
    :param env_id: Environment ID
    :return: Arguments of the environment, and its wrappers if there are any
    """
    folder = model.parent / EnvironmentName(env_id)
    settings, _ = get_saved_hyperparams(str(folder))
    arguments = settings.get("env_kwargs", {})
    command_line = folder / "args.yml"
    if command_line.is_file():
        # As trustworthy as the agent's file, which holds pickles
        arguments = yaml.load(command_line.read_text(), Loader=yaml.UnsafeLoader)["env_kwargs"] or arguments
    return arguments, get_wrapper_class(settings)


def main() -> None:
    """Parse the command line, write the report, print its key figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("--model", required=True, type=Path, help="zip file of a trained AGDPPO")
    parser.add_argument("-f", "--folder", type=Path, default=Path("imagined"), help="where to write the report")
    parser.add_argument("--n-starts", type=int, default=32, help="number of start states")
    parser.add_argument("--guidance", help="sag, eag, reward or none (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, help="strength of the guidance (default: as in the last rollout)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environment and of all noise")
    parser.add_argument(
        "--env-kwargs", nargs="+", action=StoreDict, default={}, help="arguments of the environment beyond those of training"
    )
    parser.add_argument("--n-filmed", type=int, default=25, help="number of segments in the video, 0 for none")
    arguments = parser.parse_args()
    # Matrices are small here: more threads only get into each other's way
    th.set_num_threads(1)
    if arguments.n_filmed > 0 and os.name == "posix" and not os.environ.get("DISPLAY"):
        # Without a display, MuJoCo renders through EGL only
        os.environ.setdefault("MUJOCO_GL", "egl")

    env_kwargs, wrapper = training_environment(arguments.model, arguments.env)
    env_kwargs = {**env_kwargs, **arguments.env_kwargs}

    def make_env() -> gym.Env:
        try:
            env = gym.make(arguments.env, render_mode="rgb_array" if arguments.n_filmed > 0 else None, **env_kwargs)
        except TypeError:
            env = gym.make(arguments.env, **env_kwargs)
        return env if wrapper is None else wrapper(env)

    report = imagination_report(
        AGDPPO.load(arguments.model, device="cpu"),
        make_env,
        arguments.folder,
        arguments.n_starts,
        arguments.guidance,
        arguments.guidance_scale,
        arguments.seed,
        arguments.n_filmed,
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


if __name__ == "__main__":
    main()

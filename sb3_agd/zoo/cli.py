"""
Command line: RL-Zoo's commands, with all their options, after AGDPPO has been registered, and this package's own.

What takes long to import (PyTorch, SB3, RL-Zoo) is imported only where a command runs: ``--help`` does not wait for it.
"""

import argparse
import functools
import importlib
import re
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sb3_agd import __version__
from sb3_agd.zoo.parsers import (
    CommandParser,
    add_benchmark_arguments,
    add_imagine_arguments,
    add_load_arguments,
    add_plot_arguments,
    add_push_arguments,
)
from sb3_agd.zoo.registration import register
from sb3_agd.zoo.script_help import print_help

PROGRAM = "sb3-agd"
# Packages of the extra `zoo`, by the names that they are imported by
ZOO = (
    *("huggingface_hub", "huggingface_sb3", "matplotlib", "moviepy", "optuna", "pandas", "pytablewriter", "requests"),
    *("rl_zoo3", "rliable", "sb3_contrib", "scipy", "seaborn", "sqlalchemy", "tensorboard", "yaml"),
)
# Packages that are not there without an extra of this package
EXTRAS = {**dict.fromkeys(ZOO, "zoo"), "wandb": "wandb"}
# Commands that step environments
PLAYING = ("train", "enjoy", "record-video", "imagine")
# Part of a warning that only the author of a task can act on: HalfCheetah has it
IRRELEVANT_WARNING = "'settotalmass' is deprecated"


@dataclass(frozen=True)
class Command:
    """
    A command.

    :param summary: What it does, in one line
    :param module: RL-Zoo's are run as scripts. Ours have a function ``run``, which gets the parsed command line
    :param add_arguments: Adds the arguments of one of our own commands to a parser
    """

    summary: str
    module: str
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None

    @property
    def description(self) -> str:
        """The summary as a sentence."""
        return f"{self.summary[0].upper()}{self.summary[1:]}."


COMMANDS = {
    "train": Command("train an agent, or tune hyperparameters (-optimize)", "rl_zoo3.train"),
    "enjoy": Command("watch a trained agent", "rl_zoo3.enjoy"),
    "record-video": Command("film a trained agent", "rl_zoo3.record_video"),
    "imagine": Command(
        "see what AGDPPO's world model imagines, and whether it comes true",
        "sb3_agd.zoo.imagine",
        add_imagine_arguments,
    ),
    "benchmark": Command("evaluate all agents of a folder", "sb3_agd.zoo.benchmark", add_benchmark_arguments),
    "plot-train": Command("plot returns in training", "rl_zoo3.plots.plot_train"),
    "all-plots": Command("plot evaluations, and gather them in a file", "rl_zoo3.plots.all_plots"),
    "plot-from-file": Command(
        "compare algorithms by the file of all-plots, with scores normalised", "sb3_agd.zoo.plots", add_plot_arguments
    ),
    "push-to-hub": Command("upload an agent to the Hugging Face hub", "sb3_agd.hub.push_to_hub", add_push_arguments),
    "load-from-hub": Command("download an agent from the Hugging Face hub", "sb3_agd.hub.load_from_hub", add_load_arguments),
}


@functools.cache
def print_mujoco_warning(message: str) -> None:
    """
    Print a warning, once, unless users cannot act on it.

    :param message: MuJoCo's warning
    """
    if IRRELEVANT_WARNING not in message:
        print(f"MuJoCo: {message}", file=sys.stderr)


def filter_mujoco_warnings() -> None:
    """Use :func:`print_mujoco_warning` for the warnings of MuJoCo, which by default are printed for each environment anew."""
    # Not all tasks need MuJoCo
    try:
        import mujoco
    except ImportError:
        return
    mujoco.set_mju_user_warning(print_mujoco_warning)


def prepare_script(name: str, arguments: list[str]) -> list[str]:
    """
    Check what RL-Zoo's scripts do not check, and set what they leave open.

    :param name: Name of the command
    :param arguments: Its command line
    :return: The command line to run it with
    """
    import torch as th
    from stable_baselines3.common.utils import get_device

    parser = CommandParser(prog=f"{PROGRAM} {name}", add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("--num-threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--seed")
    parser.add_argument("-i", "--trained-agent", type=Path, default=Path())
    known, _ = parser.parse_known_args(arguments)
    try:
        th.empty(0, device=get_device(known.device))
    except RuntimeError:
        parser.error(f"argument --device: there is no {known.device!r} here, try auto, cpu or cuda")
    if name != "train" or known.algo != "agdppo":
        return arguments
    # Other commands do not need these
    import yaml
    from huggingface_sb3 import EnvironmentName

    from sb3_agd.zoo.experiment_manager import CHECKPOINT_NAME
    from sb3_agd.zoo.settings import read_saved

    # A resumed run keeps its seed
    if known.seed is None and CHECKPOINT_NAME.fullmatch(known.trained_agent.name):
        file = known.trained_agent.parent / EnvironmentName(known.env) / "args.yml"
        with suppress(OSError, KeyError, yaml.YAMLError):
            arguments = [*arguments, "--seed", str(read_saved(file)["seed"])]
    # Several threads only slow down networks of this size
    return [*arguments, "--num-threads", "1"] if known.num_threads is None else arguments


def run_script(name: str) -> None:
    """
    :param name: Name of a command of RL-Zoo
    """
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print_help(sys.argv[0], COMMANDS[name].description, COMMANDS[name].module)
    register()
    sys.argv[1:] = prepare_script(name, sys.argv[1:])
    # Some scripts are already imported by others
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    if name in PLAYING:
        filter_mujoco_warnings()
    if name == "train":
        # Like Ctrl-C, which ends training with saving the agent
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    runpy.run_module(COMMANDS[name].module, run_name="__main__")


def run_own(name: str) -> None:
    """
    :param name: Name of one of this package's own commands
    """
    command = COMMANDS[name]
    assert command.add_arguments is not None
    parser = CommandParser(prog=sys.argv[0], description=command.description)
    command.add_arguments(parser)
    arguments = parser.parse_args(sys.argv[1:])
    if name in PLAYING:
        filter_mujoco_warnings()
    importlib.import_module(command.module).run(arguments)


def is_refusal(error: Exception) -> bool:
    """
    :param error: What ended a command
    :return: Whether it is about what the user asked for (a name, a file, a value), rather than about broken code
    """
    import gymnasium as gym

    # What the user typed is evaluated in frames of its own
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != "<string>"]
    if any(frame.name == "learn" for frame in frames):
        return False
    if isinstance(error, (ValueError, AssertionError, OSError, ImportError, gym.error.Error)):
        return True
    # Names and values in `-params` and `--env-kwargs` that do not exist
    source = Path(frames[-1].filename)
    by_name = "rl_zoo3" in source.parent.parts or source == Path(gym.envs.registration.__file__)
    return by_name and isinstance(error, (TypeError, NameError, SyntaxError))


def missing_extra(error: Exception) -> str | None:
    """
    :param error: What ended a command
    :return: What to do if a package of an extra is not installed, ``None`` if it is something else
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        packages = [error.name.partition(".")[0]]
    elif isinstance(error, ImportError) and error.name is None:
        # Some packages name their optional dependencies in the message only
        packages = re.findall(r"\w+", str(error).lower())
    else:
        packages = []
    missing = [package for package in packages if package in EXTRAS]
    return f'{missing[0]} is not installed: pip install "sb3_agd[{EXTRAS[missing[0]]}]"' if missing else None


def main() -> None:
    """Run the command that is named first on the command line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    parser = CommandParser(
        prog=PROGRAM,
        description="RL Baselines3 Zoo with AGDPPO among its algorithms (--algo agdppo).",
        epilog="\n".join(["commands:", *lines, "", f"`{PROGRAM} COMMAND --help` lists the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    name = parser.parse_args(sys.argv[1:2]).command
    # RL-Zoo's parsers name themselves after the script
    sys.argv = [f"{PROGRAM} {name}", *sys.argv[2:]]
    # The user's modules in the present folder, as with `python -m`. At the end: nothing that is installed is shadowed
    sys.path.append("")
    try:
        if COMMANDS[name].add_arguments is None:
            run_script(name)
        else:
            run_own(name)
    except Exception as error:
        problem = missing_extra(error)
        if problem is None and not is_refusal(error):
            raise
        hint = " (text in -params needs quotes of its own: \"guidance:'eag'\")" if isinstance(error, NameError) else ""
        sys.exit(f"{sys.argv[0]}: error: {problem or str(error) or type(error).__name__}{hint}")

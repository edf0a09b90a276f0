"""Command line: RL-Zoo's own commands, with all their options, after AGDPPO has been registered."""

import argparse
import runpy
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

import gymnasium as gym
import rl_zoo3

from sb3_agd import __version__
from sb3_agd.zoo.registration import register
from sb3_agd.zoo.repairs import repair_zoo

ZOO = Path(rl_zoo3.__file__).parent
# Modules that are run as scripts: the zoo's, and one of ours
COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record-video": "rl_zoo3.record_video",
    "benchmark": "rl_zoo3.benchmark",
    "plot-train": "rl_zoo3.plots.plot_train",
    "all-plots": "rl_zoo3.plots.all_plots",
    "plot-from-file": "sb3_agd.zoo.plots",
    "push-to-hub": "rl_zoo3.push_to_hub",
    "load-from-hub": "rl_zoo3.load_from_hub",
    "imagine": "sb3_agd.diagnostics.command",
}


def exit_with_one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """
    ``ArgumentParser.error`` without the usage, which for ``train`` fills a screen.

    :param parser: The parser
    :param message: What is wrong with the command line
    """
    parser.exit(2, f"{parser.prog}: error: {message}\n")


def default_threads(arguments: list[str]) -> bool:
    """
    :param arguments: Arguments of ``train``
    :return: Whether they are about AGDPPO and leave the number of threads open
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("--num-threads")
    known, _ = parser.parse_known_args(arguments)
    return known.algo == "agdppo" and known.num_threads is None


def is_refusal(error: Exception) -> bool:
    """
    :param error: What ended a command
    :return: Whether it is about what the user asked for (a name, a file, a value), rather than about broken code
    """
    # What the user typed is evaluated in frames of its own
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != "<string>"]
    if any(frame.name == "learn" for frame in frames):
        return False
    if isinstance(error, (ValueError, AssertionError, OSError, ImportError, gym.error.Error)):
        return True
    # Names and values in `-params` and `--env-kwargs` that do not exist
    source = Path(frames[-1].filename)
    by_name = source.is_relative_to(ZOO) or source == Path(gym.envs.registration.__file__)
    return by_name and isinstance(error, (TypeError, NameError, SyntaxError))


def main() -> None:
    """Run the command that is named first on the command line."""
    argparse.ArgumentParser.error = exit_with_one_line  # type: ignore[method-assign, assignment]
    parser = argparse.ArgumentParser(
        prog="sb3-agd",
        description="RL Baselines3 Zoo with AGDPPO among its algorithms (--algo agdppo).",
        epilog="`sb3-agd COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    command = parser.parse_args(sys.argv[1:2]).command

    register()
    repair_zoo()
    # The zoo's parsers name themselves after the script
    sys.argv = [f"{parser.prog} {command}", *sys.argv[2:]]
    # Some scripts are already imported by others
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    if command == "train":
        # Like Ctrl-C, which ends training with saving the agent
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if default_threads(sys.argv[1:]):
            # Several threads only slow down networks of this size
            sys.argv += ["--num-threads", "1"]
    try:
        runpy.run_module(COMMANDS[command], run_name="__main__")
    except Exception as error:
        if not is_refusal(error):
            raise
        hint = " (text in -params needs quotes of its own: \"guidance:'eag'\")" if isinstance(error, NameError) else ""
        sys.exit(f"{parser.prog} {command}: error: {str(error) or type(error).__name__}{hint}")

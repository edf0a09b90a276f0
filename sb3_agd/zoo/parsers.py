"""Command lines of this package's own commands. They import nothing heavy, so that ``--help`` does not wait."""

import argparse
from pathlib import Path
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """``ArgumentParser`` whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def keyword(text: str) -> tuple[str, Any]:
    """
    :param text: A name and a Python expression, as in ``mass:2.5``
    :return: The name and the value
    :raises argparse.ArgumentTypeError: If there is no such value
    """
    name, _, expression = text.partition(":")
    try:
        return name, eval(expression)
    except Exception as error:  # An expression can fail in any way
        raise argparse.ArgumentTypeError(f"{text} is not NAME:EXPRESSION ({error})") from error


def add_imagine_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of ``imagine``
    """
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("--model", required=True, type=Path, help="zip file of a trained AGDPPO")
    parser.add_argument("-f", "--folder", type=Path, default=Path("imagined"), help="where to write the report")
    parser.add_argument("--n-starts", type=int, default=32, help="number of start states")
    parser.add_argument("--guidance", help="sag, eag, reward or none (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, help="strength of the guidance (default: as in the last rollout)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environment and of all noise")
    parser.add_argument(
        "--env-kwargs", nargs="+", type=keyword, default=[], help="arguments of the environment beyond those of training"
    )
    parser.add_argument("--n-filmed", type=int, default=12, help="number of segments in the video, 0 for none")


def add_evaluation_arguments(parser: argparse.ArgumentParser, n_timesteps: int) -> None:
    """
    :param parser: Parser of a command that evaluates agents
    :param n_timesteps: Default number of steps
    """
    parser.add_argument("-n", "--n-timesteps", type=int, default=n_timesteps, help="number of steps of each evaluation")
    parser.add_argument(
        "enjoy_options", nargs="*", metavar="-- OPTION", help="further options of `enjoy`, which plays the episodes"
    )


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of ``benchmark``
    """
    parser.add_argument("-f", "--log-dir", default="logs", help="folder with the trained agents")
    parser.add_argument("-o", "--benchmark-dir", type=Path, default=Path("logs/benchmark"), help="where to write benchmark.md")
    add_evaluation_arguments(parser, n_timesteps=150_000)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of ``load-from-hub``
    """
    parser.add_argument("--algo", required=True, help="algorithm, agdppo for example")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-f", "--folder", required=True, help="folder for trained agents")
    parser.add_argument("-orga", "--organization", default="sb3", help="user or organization on the hub")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: ALGO-ENV)")
    parser.add_argument("--local", type=Path, metavar="FOLDER", help="a folder with the agent's files in place of the hub")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run, 0 for a new one")
    parser.add_argument("--force", action="store_true", help="replace the run of that number")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of ``push-to-hub``
    """
    parser.add_argument("--algo", required=True, help="algorithm, agdppo for example")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-f", "--folder", required=True, help="folder with the trained agents")
    parser.add_argument("-orga", "--organization", required=True, help="user or organization on the hub")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: ALGO-ENV)")
    parser.add_argument("-m", "--commit-message", default="Upload the agent", help="commit message")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run, 0 for the latest")
    parser.add_argument("--load-best", action="store_true", help="push the best agent, not the last one")
    parser.add_argument("--video", type=Path, help="video to show, as `record-video` makes it")
    add_evaluation_arguments(parser, n_timesteps=10_000)


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of ``plot-from-file``
    """
    parser.add_argument("-i", "--input", required=True, help="file that `all-plots` wrote with -o")
    parser.add_argument("--merge", nargs="+", default=[], help="further such files")
    parser.add_argument("-skip", "--skip-envs", nargs="+", default=[], help="environments to leave out")
    parser.add_argument("--keep-envs", nargs="+", default=[], help="environments to show (default: all)")
    parser.add_argument("--skip-keys", nargs="+", default=[], help="methods to leave out, as in ALGO-LABEL")
    parser.add_argument("--keep-keys", nargs="+", default=[], help="methods to show (default: all)")
    parser.add_argument("-l", "--labels", nargs="+", help="labels of the methods, in their order")
    parser.add_argument("--skip-timesteps", action="store_true", help="no learning curves")
    parser.add_argument("--no-million", action="store_true", help="count steps one by one, not in millions")
    parser.add_argument("-b", "--boxplot", action="store_true", help="box plot of the last evaluations, too")
    parser.add_argument("-r", "--rliable", action="store_true", help="aggregates over all environments, with intervals")
    parser.add_argument("-vs", "--versus", action="store_true", help="probabilities that one method is better than another")
    parser.add_argument("-iqm", "--iqm", action="store_true", help="interquartile mean in the course of training")
    parser.add_argument("-ci", "--ci-size", type=float, default=0.95, help="size of the intervals of these")
    parser.add_argument("-o", "--output", type=Path, help="image file; further figures get its name and their own")
    parser.add_argument("--format", help="format of the images (default: by the ending of the file)")
    parser.add_argument("--figsize", nargs=2, type=float, default=[6.4, 4.8], help="width and height in inches")
    parser.add_argument("-latex", "--latex", action="store_true", help="let LaTeX set all text")

"""``sb3-agd benchmark``: all agents of a folder, evaluated."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytablewriter
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path
from stable_baselines3.common.monitor import load_results

from sb3_agd.zoo.parsers import CommandParser
from sb3_agd.zoo.settings import read_saved

COLUMNS = ["algo", "env", "mean return", "standard deviation", "training steps", "episodes"]
# Options of `enjoy` that choose an agent
CHOICES = ("--algo", "--env", "--exp-id", "--load-best", "--load-checkpoint", "--load-last-checkpoint")


def check_options(options: list[str], hint: str = "") -> None:
    """
    :param options: Further options of ``enjoy``
    :param hint: What to do instead
    :raises ValueError: If they choose another agent than the command does
    """
    parser = CommandParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-f", "--folder")
    for name in CHOICES:
        parser.add_argument(name, nargs="?")
    chosen = [f"--{name.replace('_', '-')}" for name in vars(parser.parse_known_args(options)[0])]
    if chosen:
        raise ValueError(f"options after `--` must not choose another agent ({', '.join(chosen)}){hint}")


def evaluate(algo: str, env_id: str, folder: str, n_timesteps: int, options: list[str]) -> np.ndarray:
    """
    Play episodes with ``enjoy``, in a process of its own.

    :param algo: Name of the algorithm
    :param env_id: Environment ID
    :param folder: Folder with the trained agents
    :param n_timesteps: Number of steps
    :param options: Further options of ``enjoy``
    :return: Return of each complete episode, shape (n_episodes,)
    :raises ValueError: If ``enjoy`` fails, or no episode is complete
    """
    command = [sys.executable, "-m", "sb3_agd", "enjoy", "--algo", algo, "--env", env_id, "-f", folder]
    with tempfile.TemporaryDirectory() as rewards:
        command += ["-n", str(n_timesteps), "--no-render", "--verbose", "0", "--reward-log", rewards, *options]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            raise ValueError(f"{algo} on {env_id} cannot be evaluated, see above")
        returns = load_results(rewards)["r"].to_numpy()
    if len(returns) == 0:
        raise ValueError(f"{algo} on {env_id} ends no episode in {n_timesteps} steps (-n)")
    return returns


def training_steps(agent: str) -> int:
    """
    :param agent: File of an agent
    :return: Number of steps that it was trained for
    """
    with ZipFile(agent) as file:
        return json.loads(file.read("data"))["num_timesteps"]


def trained_agents(folder: str) -> list[tuple[str, str]]:
    """
    :param folder: Folder with trained agents
    :return: Algorithm and task of each; those whose command line cannot be read are left out
    """
    agents = set()
    for algo in os.listdir(folder):
        for file in Path(folder, algo).glob("*/*/args.yml"):
            try:
                agents.add((algo, read_saved(file)["env"]))
            except yaml.YAMLError as error:
                print(f"Left out: {file}: {' '.join(str(error).split())}", file=sys.stderr)
    return sorted(agents)


def run(arguments: argparse.Namespace) -> None:
    """
    Evaluate the latest agent of each algorithm on each task, and write a table.

    :param arguments: Command line, see :func:`sb3_agd.zoo.parsers.add_benchmark_arguments`
    :raises ValueError: If there is no agent that can be evaluated, or an option chooses another one
    """
    check_options(arguments.enjoy_options)
    rows = []
    for algo, env_id in trained_agents(arguments.log_dir):
        try:
            _, agent, _ = get_model_path(0, arguments.log_dir, algo, EnvironmentName(env_id))
            returns = evaluate(algo, env_id, arguments.log_dir, arguments.n_timesteps, arguments.enjoy_options)
        except ValueError as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        rows.append([algo, env_id, returns.mean(), returns.std(), training_steps(agent), len(returns)])
        print(f"{algo} on {env_id}: {returns.mean():.2f} +/- {returns.std():.2f} ({len(returns)} episodes)")
    if not rows:
        raise ValueError(f"No agent in {arguments.log_dir} was evaluated")
    table = pytablewriter.MarkdownTableWriter(headers=COLUMNS, value_matrix=rows, margin=1).dumps()
    file: Path = arguments.benchmark_dir / "benchmark.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(table)
    print(f"Table in {file}")

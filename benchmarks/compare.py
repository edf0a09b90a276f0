"""
Train AGDPPO and SB3's PPO side by side on one task, and leave a table, the evaluations, a plot and the models in a
run folder::

    python -m benchmarks.compare --env HalfCheetah-v5 --steps 30000

The settings are those of ``hyperparams/``, except that imagination does not fade out.
"""

import argparse
from datetime import datetime
from pathlib import Path

import pandas as pd
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO

from benchmarks.evaluation import TimedEvaluation
from benchmarks.plots import plot_curves
from benchmarks.settings import algorithm_arguments, load_settings, make_environment
from sb3_agd import AGDPPO
from sb3_agd.zoo.cli import filter_mujoco_warnings

ALGORITHMS: dict[str, type[PPO]] = {"agdppo": AGDPPO, "ppo": PPO}
# Colours that remain distinct for colour-blind readers (Okabe and Ito)
COLOURS = {"agdppo": "#0072B2", "ppo": "#D55E00"}


def make_agent(name: str, env_id: str, seed: int) -> PPO:
    """
    :param name: Name of the algorithm
    :param env_id: Name of the task
    :param seed: Seed of the agent and of its environment
    :return: An untrained agent with the shipped settings
    """
    settings = load_settings(name, env_id)
    if callable(settings.get("synthetic_ratio")):
        # Imagination fades out over the long runs that the settings are for: a short one would lose it too early
        settings["synthetic_ratio"] = settings["synthetic_ratio"](1.0)
    env = make_environment(env_id, settings, seed)
    return ALGORITHMS[name](env=env, seed=seed, device="cpu", **algorithm_arguments(settings))


def train(name: str, arguments: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """
    Train one algorithm and evaluate it on the way.

    :param name: Name of the algorithm
    :param arguments: Command line
    :param folder: Where to leave the model and the evaluations
    :return: One row per evaluation
    """
    model = make_agent(name, arguments.env, arguments.seed)
    (folder / name).mkdir(exist_ok=True)
    file = folder / f"{name}.csv"
    evaluation = TimedEvaluation(arguments.env, arguments.seed, arguments.eval_freq, arguments.eval_episodes, file)
    print(f"Training {model.__class__.__name__} on {arguments.env} for {arguments.steps:,} steps, seed {arguments.seed}")
    model.learn(arguments.steps, callback=evaluation, progress_bar=True)
    model.save(folder / name / "model")
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(folder / name / "vecnormalize.pkl"))
    return pd.read_csv(file)


def plot(results: dict[str, pd.DataFrame], arguments: argparse.Namespace, file: Path) -> None:
    """
    :param results: Evaluations of each algorithm
    :param arguments: Command line
    :param file: Where to save the figure
    """
    curves, styles = {}, {}
    for name, table in results.items():
        mean, spread = table.return_mean.to_numpy(), table.return_std.to_numpy()
        curves[name] = (table.timesteps.to_numpy(), mean, mean - spread, mean + spread)
        styles[name] = {"color": COLOURS[name], "marker": "o", "label": ALGORITHMS[name].__name__}
    value_label = f"return of an episode\n(mean and standard deviation of {arguments.eval_episodes} episodes)"
    plot_curves(curves, styles, f"{arguments.env}, seed {arguments.seed}", value_label, file)


def show(results: dict[str, pd.DataFrame], arguments: argparse.Namespace) -> None:
    """
    Print one table of both learning curves.

    :param results: Evaluations of each algorithm
    :param arguments: Command line
    """
    table = Table(title=f"{arguments.env}, seed {arguments.seed}, {arguments.eval_episodes} deterministic episodes")
    table.add_column("timesteps", justify="right")
    for name in results:
        label = ALGORITHMS[name].__name__
        table.add_column(f"{label} return", justify="right")
        table.add_column(f"{label} wall s", justify="right")
    for row in range(min(len(evaluations) for evaluations in results.values())):
        cells = [f"{next(iter(results.values())).timesteps[row]:,}"]
        for evaluations in results.values():
            line = evaluations.iloc[row]
            cells += [f"{line.return_mean:.0f} ± {line.return_std:.0f}", f"{line.wall_seconds:.0f}"]
        table.add_row(*cells)
    Console().print(table)


def main() -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="task, one that hyperparams/*.yml name")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps of each algorithm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-freq", type=int, default=5_000, help="steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="run folder (default: a new one in runs/)")
    arguments = parser.parse_args()
    if arguments.steps < arguments.eval_freq:
        parser.error("--steps must be at least --eval-freq, or there is nothing to show")
    # More threads slow such small networks down
    th.set_num_threads(1)
    filter_mujoco_warnings()
    folder = arguments.folder or Path("runs") / f"{arguments.env}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: train(name, arguments, folder) for name in ALGORITHMS}
    plot(results, arguments, folder / "returns.png")
    show(results, arguments)
    print(f"Models, evaluations and the plot are in {folder}")


if __name__ == "__main__":
    main()

"""Figures of the report of a suite."""

from pathlib import Path
from typing import Any

import numpy as np
import seaborn
from matplotlib import pyplot as plt

from benchmarks.plots import plot_curves
from benchmarks.statistics import BOOTSTRAP_SEED
from benchmarks.suite_results import Results
from sb3_agd.zoo.plots import MIN_RUNS

# Colours that remain distinct for colour-blind readers (Okabe and Ito, Tol)
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#999933", "#882255")
MARKERS = "osD^vP*X<"


def style(number: int) -> dict[str, Any]:
    """
    :param number: Number of a variant
    :return: Style of its lines. After as many variants as there are colours, these come again with other markers
    """
    turn, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "marker": MARKERS[(colour + turn) % len(MARKERS)], "markersize": 4}


def plot_learning_curves(results: Results, styles: dict[str, dict], file: Path) -> None:
    """
    :param results: Results
    :param styles: Line style of each variant
    :param file: Where to save the figure
    """
    tasks = results.suite.tasks
    columns = min(len(tasks), 2)
    figure, panels = plt.subplots(
        -(-len(tasks) // columns),
        columns,
        figsize=(5 * columns, 3.4 * -(-len(tasks) // columns)),
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[len(tasks) :]:
        axes.remove()
    for axes, task in zip(panels.flat, tasks, strict=False):
        for variant in results.variants:
            table = results.of_task(variant, task)
            if not table.empty:
                # Some algorithms collect more than one step at a time: evaluations are counted, not their exact steps
                position = results.timesteps[table.groupby("seed").cumcount()]
                seaborn.lineplot(
                    x=position,
                    y=table.return_mean.to_numpy(),
                    ax=axes,
                    errorbar=("ci", 95) if table.seed.nunique() >= MIN_RUNS else None,
                    seed=BOOTSTRAP_SEED,
                    legend=False,
                    **styles[variant],
                )
        axes.set_title(task)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return of an episode")
        axes.grid(alpha=0.3)
    handles = [plt.Line2D([], [], **styles[variant]) for variant in results.variants]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_sample_efficiency(
    results: Results, curves: dict[str, tuple[np.ndarray, np.ndarray]], styles: dict[str, dict], file: Path
) -> None:
    """
    :param results: Results
    :param curves: Interquartile mean of the score at each evaluation, and its intervals, by variant
    :param styles: Line style of each variant
    :param file: Where to save the figure
    """
    score = "normalised score" if results.normalised else "return"
    plot_curves(
        {variant: (results.timesteps, points, *intervals) for variant, (points, intervals) in curves.items()},
        styles,
        f"{results.suite.name}: {len(results.suite.tasks)} tasks",
        f"{score}, interquartile mean\n(95 % stratified bootstrap intervals)",
        file,
    )

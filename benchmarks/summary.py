"""
Summarise `mujoco-100k`: the figure at the top of the README and the table under it::

    python -m benchmarks.summary

Runs were made at different times on a machine with other work, so their minutes come from :mod:`benchmarks.step_time`.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.report import at_checkpoints, to_markdown
from benchmarks.statistics import iqm_curve
from benchmarks.step_time import STEP_TIME, SUITE
from benchmarks.suite import RESULTS, Suite
from benchmarks.suite_results import Results

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "sample_efficiency.png"
# Names as people write them, and a style for each that is distinct for colour-blind readers (Okabe and Ito). Those without
# results are left out
NAMES = {"agdppo": "AGDPPO", "sac": "SAC", "crossq": "CrossQ", "trpo": "TRPO", "ppo": "PPO"}
STYLES: dict[str, dict[str, Any]] = {
    "agdppo": {"color": "#0072B2", "marker": "o", "linewidth": 3.0},
    "sac": {"color": "#E69F00", "marker": "s"},
    "crossq": {"color": "#CC79A7", "marker": "v"},
    "trpo": {"color": "#56B4E9", "marker": "^"},
    "ppo": {"color": "#000000", "marker": "D"},
}
# Least distance of the names beside the curves, in scores
NAME_DISTANCE = 0.06


@dataclass(frozen=True)
class Summary:
    """
    One algorithm.

    :param timesteps: Steps at each evaluation
    :param points: Interquartile mean of the score at each evaluation
    :param intervals: Its 95 % intervals, shape (2, evaluations)
    :param n_runs: Runs on each task
    :param minutes: Of a training on one core
    """

    timesteps: np.ndarray
    points: np.ndarray
    intervals: np.ndarray
    n_runs: int
    minutes: float


def summarise(results: Results, step_milliseconds: dict[str, float]) -> dict[str, Summary]:
    """
    :param results: Results
    :param step_milliseconds: Time of a step with each algorithm
    :return: All algorithms of ``NAMES`` that have results, the best one first
    :raises ValueError: If the time of a step with one of them is not known
    """
    summaries = {}
    for variant in NAMES:
        scores = results.matrix(variant) if variant in results.variants else np.empty(0)
        if not len(scores):
            continue
        if variant not in step_milliseconds:
            raise ValueError(f"The time of a step with {variant} is not known: python -m benchmarks.step_time")
        points, intervals = iqm_curve(scores)
        minutes = results.suite.steps * step_milliseconds[variant] / 60_000
        summaries[variant] = Summary(results.timesteps, points, intervals, len(scores), minutes)
    return dict(sorted(summaries.items(), key=lambda item: -item[1].points[-1]))


def table(summaries: dict[str, Summary]) -> str:
    """
    :param summaries: Summary of each algorithm
    :return: Scores, minutes and runs in Markdown
    """
    rows = []
    for variant, summary in summaries.items():
        row = {"algorithm": NAMES[variant]}
        values = at_checkpoints(summary.timesteps, summary.points, summary.intervals)
        row |= {f"score at {steps}": str(value) for steps, value in values.items()}
        rows.append(row | {"minutes on one core": f"{summary.minutes:.0f}", "runs on each task": str(summary.n_runs)})
    return to_markdown(pd.DataFrame(rows))


def plot(summaries: dict[str, Summary], file: Path) -> None:
    """
    :param summaries: Summary of each algorithm, the best one first
    :param file: Where to save the figure
    """
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    height = np.inf
    for variant, summary in summaries.items():
        style = STYLES[variant]
        axes.plot(summary.timesteps, summary.points, markersize=5, **{"linewidth": 1.8, **style})
        axes.fill_between(summary.timesteps, *summary.intervals, color=style["color"], alpha=0.15, linewidth=0)
        height = min(summary.points[-1], height - NAME_DISTANCE)
        axes.annotate(
            NAMES[variant],
            (summary.timesteps[-1], height),
            (10, 0),
            textcoords="offset points",
            va="center",
            fontsize=14,
            fontweight="bold" if variant == "agdppo" else None,
            annotation_clip=False,
        )
    axes.set_xlim(0, max(summary.timesteps[-1] for summary in summaries.values()))
    axes.set_ylim(0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("environment steps", fontsize=14)
    axes.set_ylabel("normalised score", fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main() -> None:
    """Parse the command line, write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the folders of results, gets the table")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="file of the figure")
    arguments = parser.parse_args()
    try:
        suite = Suite.load(SUITE)
        steps = json.loads((arguments.results / STEP_TIME).read_text())
        summaries = summarise(Results(suite, arguments.results / suite.name), steps["milliseconds per step"])
    except FileNotFoundError as error:
        parser.error(f"There is no {error.filename}: python -m benchmarks.step_time")
    except ValueError as error:
        parser.error(str(error))
    # rliable's theme is grey
    with plt.style.context("default"):
        plot(summaries, arguments.figure)
    text = table(summaries)
    (arguments.results / "summary.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

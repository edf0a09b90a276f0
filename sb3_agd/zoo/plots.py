"""``sb3-agd plot-from-file``: algorithms compared by the evaluations that ``all-plots`` gathered."""

import argparse
import itertools
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rl_zoo3.plots.score_normalization import ReferenceScore, reference_scores
from rliable import library, metrics, plot_utils
from scipy.stats import sem
from seaborn.algorithms import bootstrap

# Score 0 is the mean return of 100 episodes of uniformly random actions, measured.
# Score 1 is PPO after 1 million steps, rounded, from the public tables of RL Baselines3 Zoo (benchmark.md: HalfCheetah
# 5819, Hopper 2410, Walker2d 3479, Swimmer 282) and Tianshou (examples/mujoco: HalfCheetah 5784, Hopper 2609,
# Walker2d 3589, Reacher -4.1, Ant 3258, InvertedPendulum 1000, InvertedDoublePendulum 9231). These are of older
# versions of the tasks, there is no such table for v5.
REFERENCE_SCORES = (
    ReferenceScore("HalfCheetah-v5", -274, 5800),
    ReferenceScore("Hopper-v5", 17, 2600),
    ReferenceScore("Walker2d-v5", 1, 3500),
    ReferenceScore("Reacher-v5", -43.4, -4.1),
    ReferenceScore("Ant-v5", -48, 3300),
    ReferenceScore("Swimmer-v5", 1, 282),
    ReferenceScore("InvertedPendulum-v5", 5, 1000),
    ReferenceScore("InvertedDoublePendulum-v5", 49, 9200),
)
# `all-plots` finds tasks by any part of their names: the whole name, the one without a version, and the zoo's own
# short ones. Beside ours, there are the zoo's scores of a few other tasks
REFERENCES = {
    name: score for score in (*reference_scores, *REFERENCE_SCORES) for name in (score.env_id, score.env_id.rpartition("-")[0])
}
REFERENCES |= {"Half": REFERENCES["HalfCheetah"], "Walker": REFERENCES["Walker2d"]}
AGGREGATES = {
    "Median": metrics.aggregate_median,
    "IQM": metrics.aggregate_iqm,
    "Mean": metrics.aggregate_mean,
    "Optimality Gap": metrics.aggregate_optimality_gap,
}
BOOTSTRAP_REPETITIONS = 2000
# With fewer runs there are no intervals: a bootstrap over one run gives a point, over two their range
MIN_RUNS = 3
N_THRESHOLDS = 50
# The interquartile mean is drawn at so many points of a run at most
N_POINTS = 20

# By task and method, what `all-plots` found: "timesteps" (n_evaluations,), "mean_per_eval" (n_evaluations, n_runs), "mean"
# and "std_error" over runs
Results = dict[str, dict[str, dict[str, np.ndarray]]]


def load_results(files: list[str]) -> Results:
    """
    :param files: Files of ``all-plots``, whose ending may be left out
    :return: Their results together
    """
    results: Results = {}
    for file in files:
        with open(file if file.endswith(".pkl") else f"{file}.pkl", "rb") as opened:
            content = pickle.load(opened)
        # The same figures as text
        content.pop("results_table", None)
        for task, methods in content.items():
            results.setdefault(task, {}).update(methods)
    return results


def select(results: Results, arguments: argparse.Namespace) -> Results:
    """
    :param results: All results
    :param arguments: Command line
    :return: Those that are to be shown, by the labels of the methods
    :raises ValueError: If nothing is left, or the number of labels is wrong
    """
    tasks = [task for task in results if task in (arguments.keep_envs or results) and task not in arguments.skip_envs]
    present = dict.fromkeys(method for task in tasks for method in results[task])
    methods = [key for key in present if key in (arguments.keep_keys or present) and key not in arguments.skip_keys]
    if not methods:
        everything = dict.fromkeys(method for runs in results.values() for method in runs)
        raise ValueError(f"Nothing is left to show: there are {', '.join(results)} with {', '.join(everything)}")
    labels = arguments.labels or methods
    if len(labels) != len(methods):
        raise ValueError(f"`--labels` must name these {len(methods)} methods, not {len(labels)}: {', '.join(methods)}")
    names = dict(zip(methods, labels, strict=True))
    return {
        task: {names[method]: evaluations for method, evaluations in results[task].items() if method in names}
        for task in tasks
    }


def last_evaluations(results: Results) -> pd.DataFrame:
    """
    :param results: The results
    :return: The last evaluation of each run
    """
    rows = [
        (task, method, score)
        for task, methods in results.items()
        for method, evaluations in methods.items()
        for score in evaluations["mean_per_eval"][-1]
    ]
    return pd.DataFrame(rows, columns=["Environment", "Method", "Score"])


def normalized_scores(results: Results, evaluations: slice) -> dict[str, np.ndarray]:
    """
    :param results: The results
    :param evaluations: Which evaluations of each run to take
    :return: Scores of each method, shape (n_runs, n_tasks, n_evaluations). ``n_runs`` is that of the task with the fewest runs
    :raises ValueError: If a task has no reference scores, or not all methods have results on all tasks
    """
    unknown = [task for task in results if task not in REFERENCES]
    if unknown:
        raise ValueError(f"No reference scores of {', '.join(unknown)}: leave them out with --skip-envs")
    methods = dict.fromkeys(method for task in results for method in results[task])
    for task, method in itertools.product(results, methods):
        if method not in results[task]:
            raise ValueError(f"{method} has no results on {task}: leave one of them out (--skip-envs, --skip-keys)")
    scores = {}
    for method in methods:
        n_runs = min(runs[method]["mean_per_eval"].shape[1] for runs in results.values())
        per_task = []
        for task, runs in results.items():
            returns, reference = runs[method]["mean_per_eval"][evaluations, :n_runs], REFERENCES[task]
            per_task.append((returns - reference.min) / (reference.max - reference.min))
        scores[method] = np.array(per_task).transpose(2, 0, 1)
    return scores


def plot_learning_curve(task: str, methods: dict[str, dict[str, np.ndarray]], arguments: argparse.Namespace) -> Figure:
    """
    :param task: Name of the task
    :param methods: Results of the methods on it
    :param arguments: Command line
    :return: Mean return of the evaluations with its standard error
    """
    figure, axes = plt.subplots(figsize=arguments.figsize)
    unit = 1 if arguments.no_million else 1e6
    for method, evaluations in methods.items():
        steps, mean, runs = evaluations["timesteps"] / unit, evaluations["mean"], evaluations["mean_per_eval"]
        axes.plot(steps, mean, label=method)
        # One run has no error. The zoo's own divides by the number of runs, not by one less
        if runs.shape[1] > 1:
            error = sem(runs, axis=1)
            axes.fill_between(steps, mean - error, mean + error, alpha=0.3)
    axes.set(title=task, xlabel="Timesteps" if arguments.no_million else "Timesteps (million)", ylabel="Return")
    axes.legend()
    return figure


def interval(scores: pd.Series) -> np.ndarray:
    """
    :param scores: The score of each run
    :return: Both ends of the 95 % interval of their mean, by a bootstrap, NaN where there are fewer than ``MIN_RUNS`` runs
    """
    return np.percentile(bootstrap(scores), [2.5, 97.5]) if len(scores) >= MIN_RUNS else np.full(2, np.nan)


def plot_last_evaluations(plot: Callable[..., Any], table: pd.DataFrame, arguments: argparse.Namespace) -> Figure:
    """
    :param plot: Function of seaborn that draws a distribution per task and method
    :param table: See :func:`last_evaluations`
    :param arguments: Command line
    :return: The returns at the end of training
    """
    figure, axes = plt.subplots(figsize=arguments.figsize)
    plot(data=table, x="Environment", y="Score", hue="Method", ax=axes)
    axes.set(title="Evaluations at the end of training", ylabel="Return")
    return figure


def of_enough_runs(intervals: dict[str, np.ndarray], scores: dict[str, Any]) -> dict[str, np.ndarray]:
    """
    :param intervals: Intervals by a bootstrap over runs
    :param scores: The scores that they come from, of each method or pair of methods, the runs along the first axis
    :return: The same, NaN where there are fewer than ``MIN_RUNS`` runs
    """
    n_runs = {name: min(map(len, each if isinstance(each, tuple) else (each,))) for name, each in scores.items()}
    return {name: ends if n_runs[name] >= MIN_RUNS else np.full_like(ends, np.nan) for name, ends in intervals.items()}


def estimate(scores: dict[str, Any], statistic: Callable[..., Any], ci_size: float) -> tuple[dict, dict]:
    """
    :param scores: Scores of each method, or of each pair of methods
    :param statistic: What is estimated
    :param ci_size: Size of the intervals
    :return: Estimates and intervals, see :func:`of_enough_runs`
    """
    estimates, intervals = library.get_interval_estimates(
        scores, statistic, reps=BOOTSTRAP_REPETITIONS, confidence_interval_size=ci_size
    )
    return estimates, of_enough_runs(intervals, scores)


def plot_aggregates(scores: dict[str, np.ndarray], ci_size: float) -> dict[str, Figure]:
    """
    :param scores: Normalised scores at the end of training, shape (n_runs, n_tasks) for each method
    :param ci_size: Size of the intervals
    :return: Figures of aggregates over all tasks, and of performance profiles
    """
    estimates = estimate(scores, lambda array: np.array([function(array) for function in AGGREGATES.values()]), ci_size)
    # The figure grows with the number of methods, the room for the numbers above its label does not
    aggregates, _ = plot_utils.plot_interval_estimates(
        *estimates, metric_names=list(AGGREGATES), xlabel_y_coordinate=-1.6 / len(scores)
    )
    highest = max(array.max() for array in scores.values())
    thresholds = np.linspace(0, max(1.0, highest), N_THRESHOLDS)
    profiles, intervals = library.create_performance_profile(
        scores, thresholds, reps=BOOTSTRAP_REPETITIONS, confidence_interval_size=ci_size
    )
    intervals = of_enough_runs(intervals, scores)
    axes = plot_utils.plot_performance_profiles(profiles, thresholds, performance_profile_cis=intervals, legend=True)
    return {"aggregates": aggregates, "profiles": axes.figure}


def plot_versus(scores: dict[str, np.ndarray], ci_size: float) -> Figure:
    """
    :param scores: See :func:`plot_aggregates`
    :param ci_size: Size of the intervals
    :return: Figure of the probability that a run of one method is better than a run of another
    :raises ValueError: If there is one method only
    """
    if len(scores) < 2:
        raise ValueError(f"`--versus` needs two methods, there is {', '.join(scores)} only")
    separator = "\n"
    pairs = {separator.join(pair): tuple(scores[method] for method in pair) for pair in itertools.combinations(scores, 2)}
    estimates = estimate(pairs, metrics.probability_of_improvement, ci_size)
    return plot_utils.plot_probability_of_improvement(*estimates, pair_separator=separator).figure


def plot_interquartile_mean(results: Results, ci_size: float) -> Figure:
    """
    :param results: The results. The shortest run decides on the number of evaluations
    :param ci_size: Size of the intervals
    :return: Figure of the interquartile mean over all tasks in the course of training
    """
    n_evaluations = min(len(run["mean_per_eval"]) for runs in results.values() for run in runs.values())
    shown = np.unique(np.linspace(0, n_evaluations - 1, N_POINTS).round().astype(int))
    scores = normalized_scores(results, slice(n_evaluations))
    estimates = estimate(
        {method: array[..., shown] for method, array in scores.items()},
        lambda array: np.array([metrics.aggregate_iqm(array[..., point]) for point in range(len(shown))]),
        ci_size,
    )
    axes = plot_utils.plot_sample_efficiency_curve(
        shown + 1, *estimates, xlabel="Number of evaluations", ylabel="IQM Normalized Score", legend=True
    )
    return axes.figure


def run(arguments: argparse.Namespace) -> None:
    """
    Print the returns at the end of training, and draw the figures that are asked for.

    :param arguments: Command line, see :func:`sb3_agd.zoo.parsers.add_plot_arguments`
    """
    results = select(load_results([arguments.input, *arguments.merge]), arguments)
    table = last_evaluations(results)
    print(table.groupby(["Environment", "Method"], sort=False).Score.agg(["mean", "sem", "count"]).to_string())
    methods = table.groupby("Method", sort=False)
    few = [method for method, runs in methods if runs.Environment.value_counts().min() < MIN_RUNS]
    if few:
        print(f"Without intervals, since they have fewer than {MIN_RUNS} runs: {', '.join(few)}", file=sys.stderr)
    seaborn.set_theme(style="whitegrid")
    if arguments.latex:
        plt.rc("text", usetex=True)
    figures = {"": plot_last_evaluations(partial(seaborn.barplot, errorbar=interval), table, arguments)}
    if arguments.boxplot:
        figures["boxplot"] = plot_last_evaluations(seaborn.boxplot, table, arguments)
    if not arguments.skip_timesteps:
        for task, methods in results.items():
            figures[f"curves_{task.replace('/', '-')}"] = plot_learning_curve(task, methods, arguments)
    if arguments.rliable or arguments.versus or arguments.iqm:
        scores = {method: array[..., 0] for method, array in normalized_scores(results, slice(-1, None)).items()}
        if arguments.rliable:
            figures |= plot_aggregates(scores, arguments.ci_size)
        if arguments.versus:
            figures["versus"] = plot_versus(scores, arguments.ci_size)
        if arguments.iqm:
            figures["iqm"] = plot_interquartile_mean(results, arguments.ci_size)
    if arguments.output is None:
        plt.show()
        return
    output: Path = arguments.output
    for name, figure in figures.items():
        file = output.with_name(f"{output.stem}_{name}{output.suffix}") if name else output
        figure.savefig(file, format=arguments.format, bbox_inches="tight")
        print(f"Figure in {file}")

"""
Report a suite of benchmarks from its files of results alone: tables in Markdown and figures, beside those files::

    python -m benchmarks.report mujoco-100k
"""

import argparse
from collections import Counter
from pathlib import Path
from shlex import quote

import numpy as np
import pandas as pd

from benchmarks.statistics import Interval, improvement, iqm_curve
from benchmarks.suite import RESULTS, Suite
from benchmarks.suite_figures import plot_learning_curves, plot_sample_efficiency, style
from benchmarks.suite_results import Results

BASELINE = "ppo"
# The mean over so many evaluations at the end tells more than the last one where returns swing
LAST_EVALUATIONS = 5
# Aggregates are given at these shares of a run
CHECKPOINTS = (0.25, 0.5, 1.0)


def first_at_least(values: np.ndarray, target: float, positions: np.ndarray) -> str:
    """
    :param values: Curve
    :param target: What is to be reached
    :param positions: Position of each point of the curve
    :return: Position of the first point that reaches it
    """
    reached = np.flatnonzero(values >= target)
    return f"{positions[reached[0]]:,.0f}" if len(reached) else "not reached"


def at_checkpoints(timesteps: np.ndarray, points: np.ndarray, intervals: np.ndarray) -> dict[str, Interval]:
    """
    :param timesteps: Steps at each evaluation
    :param points: Estimate at each evaluation
    :param intervals: Their intervals, shape (2, evaluations)
    :return: Those at the checkpoints, by the steps as text
    """
    steps = [max(round(share * len(points)), 1) - 1 for share in CHECKPOINTS]
    return {f"{timesteps[step]:,}": Interval(points[step], *intervals[:, step]) for step in steps}


def aggregate_table(results: Results, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """
    :param results: Results
    :param curves: Interquartile mean of the score at each evaluation, and its intervals, by variant
    :return: One row per variant
    """
    rows = []
    baseline = results.matrix(BASELINE)
    for variant, (points, intervals) in curves.items():
        scores = results.matrix(variant)
        row = {"variant": variant, "seeds": len(scores)}
        row |= {f"IQM at {steps}": value for steps, value in at_checkpoints(results.timesteps, points, intervals).items()}
        row[f"mean at {results.timesteps[-1]:,}"] = f"{scores[..., -1].mean():.2f}"
        if BASELINE in curves:
            better = "" if variant == BASELINE else improvement(scores[..., -1], baseline[..., -1])
            row[f"P(better than {BASELINE})"] = better
            target = curves[BASELINE][0][-1]
            row[f"steps to {BASELINE}'s last IQM"] = first_at_least(points, target, results.timesteps)
        rows.append(row)
    return pd.DataFrame(rows)


def mean_curve(evaluations: pd.DataFrame) -> pd.DataFrame:
    """
    :param evaluations: Evaluations of the seeds of one variant on one task
    :return: Mean return and median seconds of training over the seeds at each evaluation
    """
    return evaluations.groupby("timesteps").agg({"return_mean": "mean", "wall_seconds": "median"})


def task_table(results: Results, task: str) -> pd.DataFrame:
    """
    :param results: Results
    :param task: Name of a task
    :return: One row per variant
    """
    rows = []
    baseline = results.of_task(BASELINE, task)
    last = results.timesteps[-1]
    for variant in results.variants:
        evaluations = results.of_task(variant, task)
        if evaluations.empty:
            continue
        final = evaluations[evaluations.timesteps == evaluations.timesteps.max()]
        late = evaluations.groupby("seed").tail(LAST_EVALUATIONS)
        spread = f" ± {final.return_mean.std():.4g}" if len(final) > 1 else ""
        row = {
            "variant": variant,
            "seeds": len(final),
            f"return at {last:,}": f"{final.return_mean.mean():.5g}{spread}",
            f"mean of the last {LAST_EVALUATIONS} evaluations": f"{late.return_mean.mean():.5g}",
            "seconds": f"{final.wall_seconds.median():.0f}",
        }
        if not baseline.empty:
            final_baseline = baseline[baseline.timesteps == baseline.timesteps.max()]
            row[f"P(better than {BASELINE})"] = (
                ""
                if variant == BASELINE
                else improvement(final.score.to_numpy()[:, None], final_baseline.score.to_numpy()[:, None])
            )
            curve = mean_curve(evaluations)
            target = mean_curve(baseline).return_mean.iloc[-1]
            for what, positions in (("steps", curve.index.to_numpy()), ("seconds", curve.wall_seconds.to_numpy())):
                row[f"{what} to {BASELINE}'s last mean"] = first_at_least(curve.return_mean.to_numpy(), target, positions)
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_table(results: Results) -> pd.DataFrame:
    """
    :param results: Results
    :return: Variants against each other at the end of training: the probability that a run of the row's is better than one of
        the column's on the same task. Empty unless there are two with a seed that is finished on all tasks
    """
    finals = {name: scores[..., -1] for name in results.variants if len(scores := results.matrix(name))}
    if len(finals) < 2:
        return pd.DataFrame()
    return pd.DataFrame(
        {"better": name, **{other: "" if other == name else improvement(scores, finals[other]) for other in finals}}
        for name, scores in finals.items()
    )


def provenance_table(results: Results) -> pd.DataFrame:
    """
    :param results: Results
    :return: Where the runs of each variant come from
    """
    rows = []
    for variant, records in results.records.items():
        commits = sorted({record["commit"] for record in records})
        machines = sorted({f"{record['machine']['processor']}, {record['machine']['cpu_count']} cores" for record in records})
        versions = sorted({f"{record['versions']['stable_baselines3']}, {record['versions']['torch']}" for record in records})
        rows.append(
            {
                "variant": variant,
                "runs": len(records),
                "commit": ", ".join(commits),
                "machine": "; ".join(machines),
                "stable_baselines3, torch": "; ".join(versions),
            }
        )
    return pd.DataFrame(rows)


def markdown(results: Results, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """
    :param results: Results
    :param curves: Interquartile mean of the score at each evaluation, and its intervals, by variant
    :return: The report
    """
    suite = results.suite
    n_finished = sum(map(len, results.records.values()))
    missing = Counter(run.name for run in suite.runs()) - Counter({name: len(runs) for name, runs in results.records.items()})
    unfinished = "; not finished: " + ", ".join(f"{n} of {name}" for name, n in missing.items()) if missing else ""
    lines = [
        f"# {suite.name}",
        f"Written by `python -m benchmarks.report {quote(suite.given)}` from {n_finished} of {len(suite.runs())} runs of "
        f"`python -m benchmarks.run {quote(suite.given)}`{unfinished}. Every {suite.eval_freq:,} steps, "
        f"{suite.eval_episodes} episodes with the deterministic policy.",
        "## All tasks",
    ]
    if results.normalised:
        lines.append(
            "Score: 0 is a random policy, 1 the published return of PPO at a million steps. IQM: interquartile mean over "
            "seeds and tasks, with 95 % intervals by stratified bootstrap (from three seeds on; with so few they are too "
            "narrow). It leaves out the best and the worst quarter of the runs, which may be most of those of a task: hence "
            "the mean as well. Only seeds that are finished on all tasks count."
        )
    else:
        lines.append("Not all tasks have reference scores: IQM is the interquartile mean of the raw returns.")
    if curves:
        lines += [to_markdown(aggregate_table(results, curves)), "![Interquartile means](sample_efficiency.png)"]
    else:
        lines.append("No variant has a seed that is finished on all tasks yet.")
    comparison = comparison_table(results)
    if not comparison.empty:
        lines += [
            "## Variants against each other",
            f"Probability that a run of the row's variant ends better than one of the column's on the same task, at "
            f"{results.timesteps[-1]:,} steps.",
            to_markdown(comparison),
        ]
    target = (
        f' "To {BASELINE}\'s last mean": the first evaluation at which the mean over the seeds reaches that of {BASELINE} at '
        "the end."
    )
    lines += [
        "## Each task",
        "Mean and standard deviation over the seeds; median seconds of training, on machines that may have been busy."
        + (target if BASELINE in results.variants else ""),
        "![Learning curves, means with 95 % intervals](learning_curves.png)",
    ]
    for task in suite.tasks:
        table = task_table(results, task)
        if not table.empty:
            lines += [f"### {task}", to_markdown(table)]
    if not results.gains.empty:
        lines += [
            "## What guidance does",
            "Means over the measurements in training, see `GuidanceGainCallback`: how far guidance moves segments, how far "
            "guided and unguided ones are from the simulator after the same actions (standard deviations of the data), and by "
            "how much guidance raises the advantage of segments, claimed and true (standard deviations of the one-step "
            "advantage; with standard errors, as if measurements were independent).",
            to_markdown(gain_table(results.gains)),
        ]
    lines += [
        "## Where the runs come from",
        "The JSON file of each run holds all of its settings and versions.",
        to_markdown(provenance_table(results)),
    ]
    return "\n\n".join(lines) + "\n"


def gain_table(gains: pd.DataFrame) -> pd.DataFrame:
    """
    :param gains: Measurements of all runs
    :return: Mean of each figure, with standard errors of the gains, one row per task and variant and, after several tasks,
        one per variant over all of them
    """
    if gains.task.nunique() > 1:
        gains = pd.concat([gains, gains.assign(task="all")])
    groups = gains.drop(columns=["timesteps", "seed"]).groupby(["task", "variant"], sort=False)
    means, errors = groups.mean(), groups.sem()
    table = means.map(lambda value: f"{value:.3f}")
    for gain in ("claimed_gain", "true_gain"):
        # A single measurement has none
        shown = errors[gain].map(lambda error: "" if np.isnan(error) else f" ± {error:.2f}")
        table[gain] = means[gain].map("{:.2f}".format) + shown
    table.insert(0, "measurements", groups.size())
    return table.reset_index().rename(columns=lambda name: name.replace("_", " "))


def to_markdown(table: pd.DataFrame) -> str:
    """
    :param table: A table
    :return: The same in Markdown
    """
    rows = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="YAML file, or the name of one in benchmarks/suites")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the folders of results")
    arguments = parser.parse_args()
    try:
        suite = Suite.load(arguments.suite)
        folder = arguments.results / suite.name
        results = Results(suite, folder)
    except ValueError as error:
        parser.error(str(error))
    styles = {name: style(number) | {"label": name} for number, name in enumerate(suite.variants)}
    matrices = {variant: results.matrix(variant) for variant in results.variants}
    curves = {variant: iqm_curve(matrix) for variant, matrix in matrices.items() if len(matrix)}
    plot_learning_curves(results, styles, folder / "learning_curves.png")
    if curves:
        plot_sample_efficiency(results, curves, styles, folder / "sample_efficiency.png")
    report = folder / "report.md"
    report.write_text(markdown(results, curves))
    print(report.read_text())
    print(f"The report and its figures are in {folder}")


if __name__ == "__main__":
    main()

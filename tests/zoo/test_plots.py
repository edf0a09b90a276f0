"""Figures that compare algorithms, with scores normalised."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from sb3_agd.zoo.plots import (
    REFERENCE_SCORES,
    REFERENCES,
    estimate,
    load_results,
    normalized_scores,
    plot_aggregates,
    plot_learning_curve,
    plot_versus,
)

MUJOCO = ["HalfCheetah", "Hopper", "Walker2d", "Reacher", "Ant", "Swimmer", "InvertedPendulum", "InvertedDoublePendulum"]
TASK_SCORES = {"HalfCheetah-v5": (-274.0, 5800.0), "Walker": (1.0, 3500.0), "Reacher": (-43.4, -4.1)}


def evaluations_of(returns: np.ndarray) -> dict[str, np.ndarray]:
    """What `all-plots` writes about returns of shape (n_evaluations, n_runs). Its error has another divisor."""
    return {
        "timesteps": np.arange(len(returns)) + 1,
        "mean": returns.mean(1),
        "std_error": returns.std(1) / np.sqrt(returns.shape[1]),
        # One number if there is one run
        "last_evals": returns[-1].squeeze(),
        "mean_per_eval": returns,
    }


def write_results(file: Path, methods: dict[str, dict[str, np.ndarray]]) -> None:
    """Write returns of shape (n_evaluations, n_runs), by method and task, as `all-plots` does."""
    results: dict[str, Any] = {}
    for method, tasks in methods.items():
        for task, returns in tasks.items():
            results.setdefault(task, {})[method] = evaluations_of(returns)
    results["results_table"] = {"headers": [], "value_matrix": [[]]}
    file.write_bytes(pickle.dumps(results))


def test_scores_are_normalised_by_those_of_the_mujoco_tasks(tmp_path: Path) -> None:
    ends = {task: np.array([[0.0, 0.0], [low, high]]) for task, (low, high) in TASK_SCORES.items()}
    write_results(tmp_path / "results.pkl", {"AGDPPO": ends})
    scores = normalized_scores(load_results([str(tmp_path / "results")]), slice(-1, None))
    np.testing.assert_allclose(scores["AGDPPO"][..., 0], [[0.0] * 3, [1.0] * 3])


def test_every_figure_is_saved(
    tmp_path: Path, command_line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sb3_agd.zoo.plots.BOOTSTRAP_REPETITIONS", 50)
    rng = np.random.default_rng(0)
    # Their numbers of runs differ
    for number in (1, 3):
        returns = {task: rng.uniform(low, high, (4, number)) for task, (low, high) in TASK_SCORES.items()}
        write_results(tmp_path / f"results_{number}.pkl", {f"METHOD-{number}": returns})
    command_line(
        *("plot-from-file", "-i", str(tmp_path / "results_1.pkl"), "--merge", str(tmp_path / "results_3"), "-l", "old", "new"),
        *("--skip-envs", "Reacher", "--boxplot", "--rliable", "--versus", "--iqm", "-o", str(tmp_path / "scores.png")),
    )
    figures = {file.stem.removeprefix("scores"): np.asarray(Image.open(file).convert("L")) for file in tmp_path.glob("*.png")}
    curves = {f"_curves_{task}" for task in ("HalfCheetah-v5", "Walker")}
    assert set(figures) == {"", "_boxplot", "_aggregates", "_profiles", "_versus", "_iqm"} | curves
    assert all((figure < 128).mean() > 0.005 for figure in figures.values())
    out, err = capsys.readouterr()
    assert err == "Without intervals, since they have fewer than 3 runs: old\n"
    assert f"{returns['Walker'][-1].mean():.6f}"[:8] in out and "new" in out and "METHOD" not in out and "Reacher" not in out


def test_there_are_intervals_from_three_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_agd.zoo.plots.BOOTSTRAP_REPETITIONS", 50)
    scores = {str(number): np.random.default_rng(0).random((number, 2)) for number in (1, 2, 3)}
    _, intervals = estimate(scores, lambda array: np.array([array.mean()]), 0.95)
    assert {name: bool(np.isnan(ends).all()) for name, ends in intervals.items()} == {"1": True, "2": True, "3": False}
    # The estimates are still in sight
    single = {name: scores[name] for name in "12"}
    for axes in (*plot_aggregates(single, 0.95)["aggregates"].axes, plot_versus(single, 0.95).axes[0]):
        low, high = axes.get_xlim()
        assert all(low <= line.get_segments()[0][0, 0] <= high for line in axes.collections)


def test_bars_have_intervals_from_three_runs_on(
    tmp_path: Path, command_line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not drawn, and so still the present figure
    monkeypatch.setattr(plt, "show", lambda: None)
    returns = np.random.default_rng(0).random((1, 3))
    write_results(tmp_path / "results.pkl", {str(number): {"Hopper": returns[:, :number]} for number in (1, 2, 3)})
    command_line("plot-from-file", "-i", str(tmp_path / "results.pkl"), "--skip-timesteps")
    lines = plt.gca().lines
    assert [bool(np.isfinite(line.get_ydata()).all()) for line in lines] == [False, False, True]
    assert returns.min() <= lines[2].get_ydata().min() < returns.mean() < lines[2].get_ydata().max() <= returns.max()
    assert capsys.readouterr().err == "Without intervals, since they have fewer than 3 runs: 1, 2\n"
    plt.close("all")


def test_the_band_around_a_learning_curve_is_the_standard_error() -> None:
    arguments = argparse.Namespace(figsize=(6, 4), no_million=True)
    methods = {}
    for number in (1, 3):
        returns = np.random.default_rng(0).normal(size=(4, number))
        methods[str(number)] = evaluations_of(returns)
    (axes,) = plot_learning_curve("Hopper-v5", methods, arguments).axes
    (band,) = axes.collections
    ends = band.get_paths()[0].vertices[:, 1]
    error = np.std(returns, axis=1, ddof=1) / np.sqrt(3)
    assert ends.min() == pytest.approx((returns.mean(1) - error).min())
    assert ends.max() == pytest.approx((returns.mean(1) + error).max())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--keep-envs", "Ant"], "Nothing is left to show: there are Walker, Hopper, CartPole with A, B"),
        (["--labels", "one"], "`--labels` must name these 2 methods, not 1: A, B"),
        (["--rliable"], "No reference scores of CartPole"),
        (["--iqm", "--skip-envs", "CartPole"], "B has no results on Walker"),
        (["--versus", "--skip-envs", "CartPole", "--keep-keys", "A"], "`--versus` needs two methods, there is A only"),
    ],
)
def test_what_cannot_be_plotted_is_named(options: list[str], complaint: str, tmp_path: Path, command_line: Any) -> None:
    returns = np.ones((2, 2))
    write_results(
        tmp_path / "results.pkl", {"A": dict.fromkeys(("Walker", "Hopper", "CartPole"), returns), "B": {"Hopper": returns}}
    )
    with pytest.raises(SystemExit, match=complaint):
        command_line("plot-from-file", "-i", str(tmp_path / "results.pkl"), *options)


def test_reference_scores_cover_all_names_of_the_mujoco_tasks() -> None:
    assert {score.env_id for score in REFERENCE_SCORES} == {f"{name}-v5" for name in MUJOCO}
    assert all(REFERENCES[name] is REFERENCES[f"{name}-v5"] for name in MUJOCO)
    # The zoo's own short names, and one of its own scores
    assert REFERENCES["Half"].env_id == "HalfCheetah-v5" and REFERENCES["Walker"].env_id == "Walker2d-v5"
    assert REFERENCES["BipedalWalker"].max == 300

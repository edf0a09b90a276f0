"""The report of a suite: statistics, tables and figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rliable.metrics import aggregate_iqm, probability_of_improvement
from scipy.stats import trim_mean
from small_suite import SMALL, call, outcome

from benchmarks import report, run, statistics, suite_figures
from benchmarks.run import Outcome
from benchmarks.statistics import improvement, iqm_curve
from benchmarks.suite import Run, Suite
from benchmarks.suite_results import Results


@pytest.fixture
def results(suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """The variant on top gains in each task and step, so that what the statistics must say is known."""
    suite_file.write_text(SMALL.replace("n_seeds: 1", "n_seeds: 3").replace("n_seeds: 2", "n_seeds: 3"))
    returns = {"HalfCheetah-v5": (-274.0, 5800.0), "Hopper-v5": (17.0, 2600.0)}

    def execute(one: Run) -> Outcome:
        low, high = returns[one.task]
        score = np.array([0.2, 0.4]) + 0.01 * one.seed + (0.3 if one.name == "agdppo_eag" else 0)
        return outcome(list(low + score * (high - low)))

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(statistics, "BOOTSTRAP_REPETITIONS", 100)
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    return Results(Suite.load(str(suite_file)), tmp_path / "small")


def test_scores_are_normalised_by_task(results: Results) -> None:
    expected = [[[0.2 + 0.01 * seed, 0.4 + 0.01 * seed]] * 2 for seed in (3, 4, 5)]
    np.testing.assert_allclose(results.matrix("ppo"), expected, atol=1e-9)


def test_interquartile_mean_is_scipys_trimmed_mean_with_an_interval_around_it() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 4, 3))
    points, intervals = iqm_curve(scores)
    np.testing.assert_allclose(points, [trim_mean(scores[..., step].flatten(), 0.25) for step in range(3)])
    assert np.all(intervals[0] < points) and np.all(points < intervals[1])
    again = iqm_curve(scores)[1]
    np.testing.assert_array_equal(intervals, again)


def test_statistics_are_rliables() -> None:
    rng = np.random.default_rng(0)
    scores, baseline = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)).round(1)
    scores[0] = baseline[0]
    points, _ = iqm_curve(scores[..., None])
    assert points[0] == pytest.approx(aggregate_iqm(scores))
    assert improvement(scores, baseline).point == pytest.approx(probability_of_improvement(scores, baseline))


def test_tables_say_who_is_better_and_when_the_baseline_is_reached(results: Results) -> None:
    curves = {variant: iqm_curve(results.matrix(variant)) for variant in results.variants}
    table = report.aggregate_table(results, curves).set_index("variant")
    assert str(table.loc["agdppo_eag", "P(better than ppo)"]) == "1.00 [1.00, 1.00]"
    # PPO ends at 0.44, the other begins at 0.54
    assert table.loc["ppo", "mean at 200"] == "0.44"
    assert table.loc["agdppo_eag", "steps to ppo's last IQM"] == "100"
    assert table.loc["ppo", "steps to ppo's last IQM"] == "200"
    tasks = report.task_table(results, "Hopper-v5").set_index("variant")
    assert tasks.loc["agdppo_eag", "seconds to ppo's last mean"] == "2"
    assert tasks.loc["ppo", "return at 200"] == f"{17 + 0.44 * 2583:.5g} ± {0.01 * 2583:.4g}"
    assert tasks.loc["ppo", "mean of the last 5 evaluations"] == f"{17 + 0.34 * 2583:.5g}"


def test_baseline_reaches_its_own_last_mean_however_means_are_rounded(results: Results) -> None:
    table = results.evaluations
    table.loc[table.timesteps == 200, "return_mean"] = table.seed.map({3: 0.1, 4: 0.2, 5: 0.3})
    table.loc[table.timesteps == 100, "return_mean"] = -1.0
    tasks = report.task_table(results, "Hopper-v5").set_index("variant")
    assert tasks.loc["ppo", "steps to ppo's last mean"] == "200"


def test_variants_are_compared_with_each_other(results: Results) -> None:
    table = report.comparison_table(results).set_index("better")
    assert list(table.index) == list(table.columns) == ["ppo", "agdppo_eag"]
    assert str(table.loc["agdppo_eag", "ppo"]) == "1.00 [1.00, 1.00]"
    assert str(table.loc["ppo", "agdppo_eag"]) == "0.00 [0.00, 0.00]"
    assert table.loc["ppo", "ppo"] == ""
    assert "against each other" in report.markdown(results, {})
    del results.records["agdppo_eag"]
    assert report.comparison_table(results).empty
    assert "against each other" not in report.markdown(results, {})


def test_gains_of_guidance_have_standard_errors_and_a_mean_over_tasks() -> None:
    measured = {"timesteps": 10, "seed": 0, "guidance_distance": 0.1, "guided_error": 0.3, "unguided_error": 0.2}
    gains = pd.DataFrame(
        [
            {**measured, "task": "a", "variant": "sag", "claimed_gain": 1.0, "true_gain": 0.0},
            {**measured, "task": "a", "variant": "sag", "claimed_gain": 2.0, "true_gain": 0.5},
            {**measured, "task": "b", "variant": "sag", "claimed_gain": 3.0, "true_gain": 0.1},
        ]
    )
    table = report.gain_table(gains).set_index("task")
    assert [*table.measurements] == [2, 1, 3]
    assert [*table["claimed gain"]] == ["1.50 ± 0.50", "3.00", "2.00 ± 0.58"]
    assert [*table["true gain"]] == ["0.25 ± 0.25", "0.10", "0.20 ± 0.15"]
    assert table.loc["all", "guidance distance"] == "0.100"
    assert [*report.gain_table(gains[gains.task == "a"]).task] == ["a"]


def test_only_seeds_that_are_finished_on_all_tasks_count(results: Results, tmp_path: Path) -> None:
    (tmp_path / "small" / "ppo-Hopper-v5-4.json").unlink()
    part = Results(results.suite, tmp_path / "small")
    assert part.matrix("ppo").shape == (2, 2, 2)
    # Two seeds are too few for an interval
    assert str(report.aggregate_table(part, {"ppo": iqm_curve(part.matrix("ppo"))})["IQM at 200"][0]) == "0.44"
    text = report.markdown(part, {"ppo": iqm_curve(part.matrix("ppo"))})
    assert "11 of 12 runs" in text and "not finished: 1 of ppo" in text
    (tmp_path / "small" / "ppo-Hopper-v5-5.json").unlink()
    single = Results(results.suite, tmp_path / "small")
    returns = report.task_table(single, "Hopper-v5").set_index("variant")["return at 200"]
    # Nor is there a spread of one seed
    assert returns["ppo"] == f"{17 + 0.43 * 2583:.5g}"
    assert returns["agdppo_eag"] == f"{17 + 0.74 * 2583:.5g} ± {0.01 * 2583:.4g}"


def test_legend_fits_under_a_single_panel(suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ppo", "agdppo_without_pause", "agdppo_reward", "ppo_same")
    variants = "\n".join(f"  {name}: {{algorithm: ppo, n_seeds: 1}}" for name in names)
    suite_file.write_text(SMALL.split("variants:")[0].replace(", Hopper-v5", "") + f"variants:\n{variants}\n")
    monkeypatch.setattr(run, "execute", lambda _: outcome([0.0, 1.0]))
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    figures: list[Any] = []
    monkeypatch.setattr(suite_figures.plt, "close", figures.append)
    styles = {name: {"label": name} for name in names}
    suite_figures.plot_learning_curves(Results(Suite.load(str(suite_file)), tmp_path / "small"), styles, tmp_path / "a.png")
    box = figures[0].legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figures[0].bbox.x1


def test_report_without_results_says_how_to_make_them(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        call(report, monkeypatch, suite_file, "--results", tmp_path)
    assert f"python -m benchmarks.run {suite_file}\n" in capsys.readouterr().err


def test_the_report_names_its_command_as_it_was_given(results: Results, suite_file: Path) -> None:
    for given in (str(suite_file), "small"):
        named = Results(replace(results.suite, given=given), suite_file.parent / "small")
        assert f"`python -m benchmarks.report {given}` from 12 of 12 runs of `python" in report.markdown(named, {})


def test_any_number_of_variants_has_styles_of_its_own() -> None:
    styles = [suite_figures.style(number) for number in range(40)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 40

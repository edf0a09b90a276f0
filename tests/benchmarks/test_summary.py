"""The figure and the table at the top of the README, from small suites."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_suite import SMALL, call, outcome

from benchmarks import run, statistics, summary
from benchmarks.suite import Run

SCORES = {"ppo": 0.2, "agdppo": 0.5}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite with its results. Gives the folder of these."""
    returns = {"HalfCheetah-v5": (-274.0, 5800.0), "Hopper-v5": (17.0, 2600.0)}
    variants = "".join(f"  {name}: {{algorithm: {name}, n_seeds: 3}}\n" for name in SCORES)
    (tmp_path / "small.yml").write_text(f"{SMALL.split('variants:')[0]}variants:\n{variants}")

    def execute(one: Run) -> Any:
        low, high = returns[one.task]
        return outcome([low + share * SCORES[one.name] * (high - low) for share in (0.5, 1.0)])

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(statistics, "BOOTSTRAP_REPETITIONS", 20)
    call(run, monkeypatch, tmp_path / "small.yml", "--results", tmp_path)
    steps = {"agdppo": 3000.0, "ppo": 600.0}
    (tmp_path / summary.STEP_TIME).write_text(json.dumps({"milliseconds per step": steps}))
    monkeypatch.setattr(summary, "SUITE", str(tmp_path / "small.yml"))
    return tmp_path


def summarised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run the command; gives the rows of the table."""
    monkeypatch.setattr(sys, "argv", ["summary", "--results", str(folder), "--figure", str(folder / "figure.png")])
    summary.main()
    assert (folder / "figure.png").stat().st_size > 10_000
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (folder / "summary.md").read_text().splitlines()]


def test_the_best_algorithm_comes_first(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, _, *rows = summarised(suite, monkeypatch)
    assert [row[0] for row in rows] == ["AGDPPO", "PPO"]
    assert (header[-1], [row[-1] for row in rows]) == ("runs on each task", ["3", "3"])
    assert rows[0][header.index("score at 200")].startswith("0.50 [")
    assert rows[1][header.index("score at 200")].startswith("0.20 [")
    # 200 steps
    assert [row[header.index("minutes on one core")] for row in rows] == ["10", "2"]


def test_what_is_not_finished_is_left_out(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (suite / "small").glob("ppo-*.csv"):
        file.unlink()
    assert [row[0] for row in summarised(suite, monkeypatch)[2:]] == ["AGDPPO"]
    for file in (suite / "small").glob("*.csv"):
        file.unlink()
    with pytest.raises(SystemExit):
        summarised(suite, monkeypatch)
    assert "No run of small" in capsys.readouterr().err


def test_a_time_that_is_missing_is_named_with_the_command_for_it(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = suite / summary.STEP_TIME
    file.write_text(json.dumps({"milliseconds per step": {"ppo": 600.0}}))
    for complaint in ("The time of a step with agdppo is not known", f"There is no {file}"):
        with pytest.raises(SystemExit):
            summarised(suite, monkeypatch)
        assert capsys.readouterr().err.endswith(f"error: {complaint}: python -m benchmarks.step_time\n")
        file.unlink(missing_ok=True)


def test_the_figure_has_names_as_people_write_them_and_begins_at_zero(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(summary.plt, "close", figures.append)
    summarised(suite, monkeypatch)
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.texts] == ["AGDPPO", "PPO"]
    assert axes.get_ylim()[0] == axes.get_xlim()[0] == 0
    # Names beside the curves are not cut off
    figures[0].draw_without_rendering()
    assert all(text.get_window_extent().x1 <= figures[0].bbox.x1 for text in axes.texts)


def test_names_of_curves_that_end_together_do_not_overlap(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(summary.plt, "close", figures.append)
    steps, level = np.arange(1, 3), np.full(2, 0.4)
    same = summary.Summary(steps, level, np.stack([level, level]), 3, 1.0)
    summary.plot({name: same for name in summary.NAMES}, suite / "figure.png")
    figures[0].draw_without_rendering()
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert len(boxes) == len(summary.NAMES)
    assert all(below.y1 <= above.y0 for above, below in pairwise(boxes))


def linear(colour: str) -> np.ndarray:
    """Linear light of a colour."""
    values = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear light."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(light, 0, 1)
    cubic = xyz / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(cubic > 0.008856, np.cbrt(cubic), 7.787 * cubic + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_are_distinct_without_the_green_receptor() -> None:
    # Machado et al. 2009, deuteranopia
    seen = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    colours = [lab(seen @ linear(summary.STYLES[name]["color"])) for name in summary.NAMES]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    # Ten times what can just be told apart
    assert min(distances) > 23

"""What the README and some pages say, against the committed results."""

import html
import json
import re
from importlib.metadata import metadata, requires
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import trim_mean

from benchmarks.summary import NAMES, SUITE
from sb3_agd.zoo.plots import REFERENCES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
PROSE = " ".join(README.split())
STEP_TIME = json.loads((RESULTS / "step_time.json").read_text())["milliseconds per step"]
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Reacher-v5")
LARGEST_ANIMATION = 3_000_000
GUIDED = ("agd_sag", "agd_eag", "diffuser")


def runs(suite: str, variant: str, task: str) -> list[pd.DataFrame]:
    """Evaluations of each run, read without the code that the summary is made by."""
    # Their names end with the seed, those of measurements of guidance do not
    return [pd.read_csv(file) for file in sorted((RESULTS / suite).glob(f"{variant}-{task}-*[0-9].csv"))]


def last_returns(variant: str, task: str, suite: str = SUITE) -> np.ndarray:
    """Return of each run at its end."""
    return np.array([run.return_mean.iloc[-1] for run in runs(suite, variant, task)])


def last_scores(variant: str, suite: str, n_seeds: int) -> np.ndarray:
    """Normalised score of the first runs on each task at their end, shape (tasks, runs)."""
    return np.array([normalised(last_returns(variant, task, suite)[:n_seeds], task) for task in TASKS])


def normalised(returns: np.ndarray, task: str) -> np.ndarray:
    """0 for a random policy, 1 for the published return of PPO."""
    return (returns - REFERENCES[task].min) / (REFERENCES[task].max - REFERENCES[task].min)


def probability_of_more(returns: np.ndarray, others: np.ndarray) -> float:
    """Share of the pairs in which the first is higher."""
    return float((returns[:, None] > others).mean())


def test_it_is_read_in_a_minute() -> None:
    assert len(README.split()) <= 1000
    # The page is whole without somebody else's server
    assert [target for target in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README) if "://" in target] == []


def test_its_badges_are_true() -> None:
    badges = re.findall(r"^!\[([^\]]*)\]\((docs/images/badges/[^)]*)\)$", README, re.MULTILINE)
    written = {says: re.findall("<text [^>]*>([^<]*)<", (ROOT / file).read_text())[::2] for says, file in badges}
    assert [" ".join(map(html.unescape, texts)) for texts in written.values()] == list(written)
    about = metadata("sb3_agd")
    (sb3,) = re.findall(r"^stable[_-]baselines3.*?>=([\d.]+)", "\n".join(requires("sb3_agd") or []), re.MULTILINE)
    assert set(written) == {
        f"license {about['License-Expression']}",
        f"python {about['Requires-Python'].replace('>=', '>= ')}",
        f"Stable-Baselines3 >= {sb3}",
        f"paper arXiv {about['Project-URL'].rpartition('/')[2]}",
    }


def test_its_links_lead_to_files() -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]*)\)", README) if "://" not in target]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_its_animation_is_small_and_moves() -> None:
    (file,) = re.findall(r"\((docs/images/[^)]*\.webp)\)", README)
    assert (ROOT / file).stat().st_size < LARGEST_ANIMATION
    with Image.open(ROOT / file) as animation:
        n_frames = animation.n_frames
        frames = []
        for index in (0, n_frames // 2):
            animation.seek(index)
            frames.append(np.asarray(animation.convert("RGB"), dtype=int))
    assert n_frames >= 50
    # Both halves
    assert all(np.abs(part).max() > 50 for part in np.split(frames[1] - frames[0], 2, axis=1))


TABLE = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]


def test_its_table_is_that_of_the_summary() -> None:
    assert (RESULTS / "summary.md").read_text() in README


@pytest.mark.parametrize("row", TABLE[2:], ids=lambda row: row[0])
def test_each_row_of_its_table_follows_from_the_runs(row: list[str]) -> None:
    (variant,) = (variant for variant, name in NAMES.items() if name == row[0])
    by_task = [runs(SUITE, variant, task) for task in TASKS]
    cells = dict(zip(TABLE[0], row, strict=True))
    for column in TABLE[0][1:4]:
        step = int(column.removeprefix("score at ").replace(",", ""))
        returns = [np.array([run.return_mean[run.timesteps >= step].iloc[0] for run in task]) for task in by_task]
        score = trim_mean(np.concatenate([normalised(*pair) for pair in zip(returns, TASKS, strict=True)]), 0.25)
        point, low, high = map(float, re.findall(r"[\d.]+", cells[column]))
        assert point == pytest.approx(score, abs=0.0051)
        assert low <= point <= high
    assert cells["minutes on one core"] == f"{STEP_TIME[variant] * 100_000 / 60_000:.0f}"
    assert [cells["runs on each task"]] * len(TASKS) == [str(len(task)) for task in by_task]


def test_its_table_and_figure_leave_out_no_algorithm_that_was_measured() -> None:
    measured = {file.name.split("-")[0] for file in (RESULTS / SUITE).glob("*.csv")}
    assert {row[0] for row in TABLE[2:]} == {name for variant, name in NAMES.items() if variant in measured}


def test_its_comparison_with_ppo_and_sac_follows_from_the_runs() -> None:
    ours = {task: last_returns("agdppo", task) for task in TASKS}
    n_above = sum(int((returns > last_returns("ppo", task).max()).sum()) for task, returns in ours.items())
    assert f"{n_above} of AGDPPO's {sum(map(len, ours.values()))} runs ended above each of PPO's" in PROSE
    chances = {task: probability_of_more(returns, last_returns("sac", task)) for task, returns in ours.items()}
    assert f"above one of SAC with a probability of {np.mean([*chances.values()]):.2f}." in PROSE
    better = [[task for task in TASKS if (chances[task] > 0.5) == ahead] for ahead in (False, True)]
    assert "SAC was better on {} and {}, AGDPPO on {} and {}".format(*better[0], *better[1]) in PROSE


def test_its_cost_follows_from_the_runs() -> None:
    same = json.loads((RESULTS / "speed-cpu-1.json").read_text())["AGDPPO's time per step to PPO's"]
    ratios = [STEP_TIME["agdppo"] / STEP_TIME["ppo"], same]
    assert "in {:.0f} times the time of PPO with RL-Zoo's settings, or {:.0f} times with".format(*ratios) in PROSE
    assert f"in {100 * STEP_TIME['agdppo'] / STEP_TIME['sac']:.0f} % of SAC's time" in PROSE
    assert f"{STEP_TIME['crossq'] / STEP_TIME['agdppo']:.0f} times AGDPPO's" in PROSE


def test_its_failures_follow_from_the_runs() -> None:
    means = []
    for task in ("Swimmer-v5", "Ant-v5"):
        ours, ppo = (last_returns(variant, task, "mujoco-unseen") for variant in ("agdppo", "ppo"))
        assert len(ours) == 3 and ours.max() < ppo.min()
        means += [ours.mean(), ppo.mean()]
    texts = "in the mean, {:.0f} against PPO's {:.0f} on Swimmer-v5, {:.0f} against {:.0f} on Ant-v5."
    assert texts.format(*means) in PROSE
    ours, ppo = (last_returns(variant, "Ant-v5", "ant-low-noise").mean() for variant in ("agdppo", "ppo"))
    assert f"less noise at the start since then: {ours:.0f} against {ppo:.0f}." in PROSE
    guided, none = (last_scores(variant, SUITE, 3).mean() for variant in ("agdppo", "agdppo_none"))
    assert f'`guidance="none"` had a mean score of {none:.2f}, the default {guided:.2f} (three seeds each)' in PROSE
    spreads = []
    for task in ("Hopper-v5", "Walker2d-v5"):
        ours = last_returns("agdppo", task)
        spreads.append(f"between {ours.min():.0f} and {ours.max():.0f} on {task}")
    assert f"runs ended {spreads[0]}, and {spreads[1]}" in PROSE


@pytest.mark.parametrize("suffix", ["", "_fall"])
def test_the_pages_on_guidance_and_errors_follow_from_the_reports(suffix: str) -> None:
    report = json.loads((RESULTS / f"imagination_halfcheetah{suffix}.json").read_text())
    pages = [" ".join((ROOT / "docs" / f"{name}.md").read_text().split()) for name in ("measurements", "diagnostics")]
    for kind in ("claimed", "replayed", "monte_carlo"):
        gain = report["advantages"][kind]
        assert f"{gain['gain']:.2f} ± {gain['standard_error']:.2f}" in pages[0]
    errors = report["errors"]["states"]["unguided"]
    between = " and " if suffix == "" else " after one step and "
    assert f"{errors[0]:.2f}{between}{errors[-1]:.2f}" in pages[1]


def test_the_page_on_replication_follows_from_the_runs() -> None:
    suite = "paper-laptop"
    page = " ".join((ROOT / "docs" / "replication.md").read_text().split())
    means = {name: [last_returns(name, task, suite).mean() for task in TASKS] for name in ("polygrad", "ppo", "trpo")}
    cheetah, hopper, walker, reacher = zip(*means.values(), strict=True)
    learned = [f"{one:.0f} and {other:.1f}" for one, other in zip(cheetah, reacher, strict=True)]
    assert "guidance is at {} there, where PPO is at {} and TRPO at {}.".format(*learned) in page
    not_learned = [f"{one:.0f} and {other:.0f}" for one, other in zip(hopper, walker, strict=True)]
    assert "it ends at {}, PPO at {}, TRPO at {}.".format(*not_learned) in page
    ours = [last_returns("agdppo", task).mean() for task in ("Hopper-v5", "Walker2d-v5")]
    assert "ends at {:.0f} and {:.0f} there".format(*ours) in page
    scores = [
        np.mean([normalised(last_returns(name, task, suite), task).mean() for task in TASKS])
        for name in ("polygrad", "diffuser", "agd_sag", "agd_eag")
    ]
    texts = "{:.2f} without guidance, {:.2f} with guidance by reward, {:.2f} with SAG and {:.2f} with EAG"
    assert texts.format(*scores) in page
    assert f"worth {cheetah[0] / cheetah[1]:.1f} times PPO's return on HalfCheetah-v5" in page
    report = (RESULTS / suite / "report.md").read_text()
    header = next(line for line in report.splitlines() if line.startswith("| better |")).strip(" |").split(" | ")
    for name in ("agd_sag", "agd_eag"):
        cells = next(line for line in report.splitlines() if line.startswith(f"| {name} |") and "[" in line.split(" | ")[1])
        chances = dict(zip(header, cells.strip(" |").split(" | "), strict=True))
        assert chances["polygrad"] in page and chances["diffuser"] in page
    totals = {name: re.findall(rf"^\| all \| {name} .*\| (.+) \| (.+) \|$", report, re.MULTILINE) for name in GUIDED}
    (sag,), (eag,), (reward,) = totals.values()
    assert f"{sag[1]} standard deviations (SAG), {eag[1]} (EAG) and {reward[1]} (reward)" in page
    assert f"The guides claim {sag[0]}, {eag[0]} and {reward[0]}." in page

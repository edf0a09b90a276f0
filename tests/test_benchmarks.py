"""The benchmark suites: what is run, what is kept, and what the report makes of it. The other measurements."""

import contextlib
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch as th
from processes import PATIENCE, wait_for
from ray.cluster_utils import Cluster
from rliable.metrics import aggregate_iqm, probability_of_improvement
from scipy.stats import trim_mean
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks import guidance_on_linear_task, report, run
from benchmarks.evaluation import TimedEvaluation
from benchmarks.guidance_on_linear_task import LinearTask
from benchmarks.run import Outcome
from benchmarks.settings import algorithm_arguments
from benchmarks.suite import SUITES, Run, Suite
from sb3_agd import AGDPPO

ROOT = Path(__file__).parent.parent
SMALL = """
steps: 200
eval_freq: 100
eval_episodes: 1
first_seed: 3
tasks: [HalfCheetah-v5, Hopper-v5]
variants:
  ppo: {algorithm: ppo, n_seeds: 2}
  agdppo_eag: {algorithm: agdppo, n_seeds: 1, settings: {guidance: eag}}
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yml"
    file.write_text(SMALL)
    return file


def evaluations(returns: list[float]) -> str:
    rows = [f"{100 * (step + 1)},{value},1.0,{2.0 * (step + 1)}" for step, value in enumerate(returns)]
    return "\n".join(["timesteps,return_mean,return_std,wall_seconds", *rows]) + "\n"


def outcome(returns: list[float] | None, log: str = "") -> Outcome:
    machine, versions = {"processor": "abacus", "cpu_count": 1}, {"stable_baselines3": "2", "torch": "2"}
    return Outcome(None if returns is None else evaluations(returns), log, 1.0, run.commit(), machine, versions)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were started; each gives returns that tell its seed."""
    names = []

    def execute(one: Run) -> Outcome:
        names.append(str(one))
        return outcome([0.0, one.seed])

    monkeypatch.setattr(run, "execute", execute)
    return names


def call(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]


def test_any_part_of_a_suite_is_balanced(suite_file: Path) -> None:
    names = [str(one) for one in Suite.load(str(suite_file)).runs()]
    assert names == [
        "ppo-HalfCheetah-v5-3",
        "agdppo_eag-HalfCheetah-v5-3",
        "ppo-Hopper-v5-3",
        "agdppo_eag-Hopper-v5-3",
        "ppo-HalfCheetah-v5-4",
        "ppo-Hopper-v5-4",
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yml")))
def test_shipped_suites_are_valid(name: str) -> None:
    suite = Suite.load(name)
    for one in suite.runs():
        assert one.hyperparameters["policy"] == "MlpPolicy"
        assert one.variant.settings.items() <= one.hyperparameters.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("algorithm: ppo", "algorithm: pbo"), "'ppo'.*pbo.yml"),
        (("Hopper-v5", "Hoper-v5"), "ppo.yml has no settings for Hoper-v5"),
        (("eval_freq", "eval_frequency"), "not a suite.*eval_frequency"),
        (("n_seeds: 1", "seeds: 1"), "not a suite.*seeds"),
        (("guidance: eag", "guidence: eag"), "'agdppo_eag' has unknown settings guidence"),
        (("variants:", "variants"), "not a suite"),
    ],
)
def test_mistakes_in_a_suite_are_named(suite_file: Path, change: tuple[str, str], message: str) -> None:
    suite_file.write_text(SMALL.replace(*change))
    with pytest.raises(ValueError, match=message):
        Suite.load(str(suite_file))


def test_unknown_suite_is_answered_with_the_known_ones() -> None:
    known = ", ".join(sorted(file.stem for file in SUITES.glob("*.yml")))
    assert "mujoco-100k" in known
    with pytest.raises(ValueError, match=f"no suite 'mujocco': give a file, or one of {known}$"):
        Suite.load("mujocco")


def test_finished_runs_are_skipped(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (suite_file, "--results", tmp_path)
    call(run, monkeypatch, *arguments)
    assert executed == [str(one) for one in Suite.load(str(suite_file)).runs()]
    executed.clear()
    # An interruption between the two files of a run, a truncated file, and settings that are no longer those of the run
    (tmp_path / "small" / "ppo-Hopper-v5-3.json").unlink()
    (tmp_path / "small" / "ppo-Hopper-v5-4.csv").write_text(evaluations([0.0]))
    suite_file.write_text(SMALL.replace("guidance: eag", "guidance: eag, horizon: 4"))
    call(run, monkeypatch, *arguments)
    assert executed == ["agdppo_eag-HalfCheetah-v5-3", "ppo-Hopper-v5-3", "agdppo_eag-Hopper-v5-3", "ppo-Hopper-v5-4"]
    executed.clear()
    call(run, monkeypatch, *arguments, "--again", "--only", "agdppo_eag")
    assert executed == ["agdppo_eag-HalfCheetah-v5-3", "agdppo_eag-Hopper-v5-3"]


@pytest.mark.parametrize(
    "change", [("steps: 200", "steps: 100"), ("steps: 200\neval_freq: 100", "steps: 400\neval_freq: 200")]
)
def test_runs_of_another_length_are_made_again(
    change: tuple[str, str], suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    suite_file.write_text(SMALL.replace(*change))
    assert all(one.saved(tmp_path / "small") is None for one in Suite.load(str(suite_file)).runs())


def test_a_result_that_cannot_be_written_ends_the_suite(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, tried_to_save = run.execute, threading.Event()

    def execute_in_turn(one: Run) -> Outcome:
        if executed:
            # So that there is a run under way when the first one's result cannot be written
            tried_to_save.wait(PATIENCE)
            time.sleep(0.2)
        return execute(one)

    def save(*_: object) -> str:
        tried_to_save.set()
        raise OSError("No space left on device")

    monkeypatch.setattr(run, "execute", execute_in_turn)
    monkeypatch.setattr(run, "save", save)
    # Like an error that ends the program, this one holds on to everything that was at work
    with pytest.raises(OSError, match="No space left") as held:
        call(run, monkeypatch, suite_file, "--results", tmp_path)
    assert held.value.__traceback__ is not None
    time.sleep(1)
    assert len(executed) <= 2 < len(Suite.load(str(suite_file)).runs())


def test_a_record_is_never_that_of_other_evaluations(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(run, "replaced_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        call(run, monkeypatch, suite_file, "--results", tmp_path, "--again", "--only", "agdppo_eag")
    folder = tmp_path / "small"
    first, second = ("agdppo_eag-HalfCheetah-v5-3", "agdppo_eag-Hopper-v5-3")
    assert not (folder / f"{first}.json").exists() and (folder / f"{second}.json").exists()


def test_no_two_runs_share_episodes_of_their_evaluations(tmp_path: Path) -> None:
    states = []
    for seed in range(2):
        evaluation = TimedEvaluation("Reacher-v5", seed, 100, 10, tmp_path / "evaluations.csv")
        states += list(evaluation.eval_env.reset())
    states += list(make_vec_env("Reacher-v5", 10, seed=0).reset())
    assert len(np.unique(states, axis=0)) == 30


def test_record_holds_what_made_the_run(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    record = json.loads((tmp_path / "small" / "agdppo_eag-Hopper-v5-3.json").read_text())
    assert record["task"] == "Hopper-v5" and record["seed"] == 3 and record["commit"] == run.commit()
    # From the variant, from the settings file, from the signature
    assert record["hyperparameters"]["guidance"] == "eag"
    assert record["hyperparameters"]["max_grad_norm"] == 0.7
    assert record["hyperparameters"]["n_denoising_steps"] == 2


def test_runs_made_before_an_argument_existed_are_made_again(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    executed.clear()
    file = tmp_path / "small" / "agdppo_eag-Hopper-v5-3.json"
    record = json.loads(file.read_text())
    del record["hyperparameters"]["real_data_ratio"]
    file.write_text(json.dumps(record))
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    assert executed == ["agdppo_eag-Hopper-v5-3"]


def test_failed_run_is_reported_and_the_others_go_on(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def execute(one: Run) -> Outcome:
        if str(one) == "agdppo_eag-HalfCheetah-v5-3":
            raise OSError("no process left")
        return outcome(None, "start\nout of luck") if one.name == "agdppo_eag" else outcome([0.0, 1.0])

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(SystemExit, match="2 of 6 runs failed: agdppo_eag-HalfCheetah-v5-3, agdppo_eag-Hopper-v5-3"):
        call(run, monkeypatch, suite_file, "--results", tmp_path)
    printed = capsys.readouterr().out
    assert "agdppo_eag-Hopper-v5-3 failed after 1 s:\nstart\nout of luck" in printed
    assert "agdppo_eag-HalfCheetah-v5-3 failed after 0 s:\nOSError: no process left" in printed
    assert len(list((tmp_path / "small").glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--only", "a2c"], "no variant a2c, only ppo, agdppo"),
        (["smoke", "--jobs", "0"], "--jobs must be at least 1"),
        (["smoke", "--address", "auto"], "--address needs --backend ray"),
        (["smog"], "There is no suite 'smog'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        call(run, monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_smoke_suite_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    arguments = ["smoke", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.run", *arguments, "--jobs", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    table = pd.read_csv(tmp_path / "smoke" / "agdppo-CartPole-v1-0.csv")
    assert table.timesteps.tolist() == [512, 1024]
    assert table.return_mean.gt(0).all() and table.wall_seconds.is_monotonic_increasing
    reported = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert reported.returncode == 0, reported.stderr
    assert "4 of 4 runs" in reported.stdout
    assert {"report.md", "learning_curves.png", "sample_efficiency.png"} <= set(os.listdir(tmp_path / "smoke"))


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are found in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_suite_leaves_no_process_behind(sent: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "mujoco-1m", "--only", "ppo", "--results", str(tmp_path)]

    def heed_interrupts() -> None:
        # Shells let processes in the background ignore them, and their children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    suite = subprocess.Popen(command, cwd=ROOT, preexec_fn=heed_interrupts, **streams)

    def trainings() -> list[Path]:
        begun = []
        for process in Path("/proc").glob("[0-9]*"):
            # Others come and go
            with contextlib.suppress(OSError):
                # After the name, which may hold anything: state, parent
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == suite.pid and b"sb3_agd\0train" in (process / "cmdline").read_bytes():
                    begun.append(process)
        return begun

    try:
        begun = wait_for(trainings)
        suite.send_signal(sent)
        _, errors = suite.communicate(timeout=PATIENCE)
    finally:
        suite.kill()
    assert begun and suite.returncode != 0
    assert not any(process.exists() for process in begun), errors
    assert list((tmp_path / "mujoco-1m").iterdir()) == []


@pytest.fixture
def interrupt() -> Iterator[signal.Signals]:
    """A signal that interrupts, other than those that pytest knows."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("when", ["while runs are handed out", "in the thread of a run"])
def test_an_interrupt_ends_the_runs_wherever_it_comes(
    when: str, interrupt: signal.Signals, suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen] = []

    def execute(_: Run) -> None:
        process = subprocess.Popen(["sleep", "20"], start_new_session=True)
        started.append(process)
        run.RUNNING.add(process)
        if when == "in the thread of a run":
            # The main thread, which deals with it, goes on waiting
            time.sleep(0.5)
            signal.pthread_kill(threading.get_ident(), interrupt)
        process.wait()
        run.RUNNING.discard(process)

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments: Any) -> Any:
            if when == "while runs are handed out" and started:
                signal.raise_signal(interrupt)
            future = super().submit(*arguments)
            wait_for(lambda: started)
            return future

    monkeypatch.setattr(run, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(run, "execute", execute)
    outcomes = run.run_locally(Suite.load(str(suite_file)).runs(), 1)
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_cluster_of_two_nodes_runs_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.yml"
    file.write_text(
        "steps: 512\neval_freq: 256\neval_episodes: 1\nfirst_seed: 0\ntasks: [CartPole-v1]\n"
        "variants:\n  ppo: {algorithm: ppo, n_seeds: 2, settings: {n_steps: 64, batch_size: 64}}\n"
        "  broken: {algorithm: ppo, n_seeds: 1, settings: {n_steps: -1}}\n"
    )
    # The driver's node has no CPU to give, so the runs are on the other one
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=2)
        arguments = (file, "--results", tmp_path, "--backend", "ray", "--address", cluster.address)
        with pytest.raises(SystemExit, match="1 of 3 runs failed: broken-CartPole-v1-0"):
            call(run, monkeypatch, *arguments)
    finally:
        ray.shutdown()
        cluster.shutdown()
    for seed in range(2):
        assert pd.read_csv(tmp_path / "tiny" / f"ppo-CartPole-v1-{seed}.csv").timesteps.tolist()[:2] == [256, 512]


# Report


@pytest.fixture
def results(suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> report.Results:
    """The variant on top gains in each task and step, so that what the statistics must say is known."""
    suite_file.write_text(SMALL.replace("n_seeds: 1", "n_seeds: 3").replace("n_seeds: 2", "n_seeds: 3"))
    returns = {"HalfCheetah-v5": (-274.0, 5800.0), "Hopper-v5": (17.0, 2600.0)}

    def execute(one: Run) -> Outcome:
        low, high = returns[one.task]
        score = np.array([0.2, 0.4]) + 0.01 * one.seed + (0.3 if one.name == "agdppo_eag" else 0)
        return outcome(list(low + score * (high - low)))

    monkeypatch.setattr(run, "execute", execute)
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    return report.Results(Suite.load(str(suite_file)), tmp_path / "small")


def test_scores_are_normalised_by_task(results: report.Results) -> None:
    expected = [[[0.2 + 0.01 * seed, 0.4 + 0.01 * seed]] * 2 for seed in (3, 4, 5)]
    np.testing.assert_allclose(results.matrix("ppo"), expected, atol=1e-9)


def test_interquartile_mean_is_scipys_trimmed_mean_with_an_interval_around_it() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 4, 3))
    points, intervals = report.iqm_curve(scores)
    np.testing.assert_allclose(points, [trim_mean(scores[..., step].flatten(), 0.25) for step in range(3)])
    assert np.all(intervals[0] < points) and np.all(points < intervals[1])
    again = report.iqm_curve(scores)[1]
    np.testing.assert_array_equal(intervals, again)


def test_statistics_are_rliables() -> None:
    rng = np.random.default_rng(0)
    scores, baseline = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)).round(1)
    scores[0] = baseline[0]
    points, _ = report.iqm_curve(scores[..., None])
    assert points[0] == pytest.approx(aggregate_iqm(scores))
    assert report.improvement(scores, baseline).point == pytest.approx(probability_of_improvement(scores, baseline))


def test_tables_say_who_is_better_and_when_the_baseline_is_reached(results: report.Results) -> None:
    curves = {variant: report.iqm_curve(results.matrix(variant)) for variant in results.variants}
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


def test_the_suite_of_defaults_has_those_of_the_classes() -> None:
    for each in Suite.load("mujoco-defaults").runs():
        parameters = inspect.signature({"ppo": PPO, "agdppo": AGDPPO}[each.variant.algorithm]).parameters
        arguments = algorithm_arguments(each.hyperparameters)
        assert arguments.pop("policy") == "MlpPolicy" and arguments.pop("policy_kwargs") == "dict()"
        assert arguments == {name: parameters[name].default for name in arguments}
        assert not each.hyperparameters["normalize"]


def test_baseline_reaches_its_own_last_mean_however_means_are_rounded(results: report.Results) -> None:
    table = results.evaluations
    table.loc[table.timesteps == 200, "return_mean"] = table.seed.map({3: 0.1, 4: 0.2, 5: 0.3})
    table.loc[table.timesteps == 100, "return_mean"] = -1.0
    tasks = report.task_table(results, "Hopper-v5").set_index("variant")
    assert tasks.loc["ppo", "steps to ppo's last mean"] == "200"


def test_variants_are_compared_with_each_other(results: report.Results) -> None:
    table = report.comparison_table(results).set_index("better")
    assert list(table.index) == list(table.columns) == ["ppo", "agdppo_eag"]
    assert str(table.loc["agdppo_eag", "ppo"]) == "1.00 [1.00, 1.00]"
    assert str(table.loc["ppo", "agdppo_eag"]) == "0.00 [0.00, 0.00]"
    assert table.loc["ppo", "ppo"] == ""
    assert "against each other" in report.markdown(results, {})
    del results.records["agdppo_eag"]
    assert report.comparison_table(results).empty
    assert "against each other" not in report.markdown(results, {})


def test_only_seeds_that_are_finished_on_all_tasks_count(results: report.Results, tmp_path: Path) -> None:
    (tmp_path / "small" / "ppo-Hopper-v5-4.json").unlink()
    part = report.Results(results.suite, tmp_path / "small")
    assert part.matrix("ppo").shape == (2, 2, 2)
    # Two seeds are too few for an interval
    assert str(report.aggregate_table(part, {"ppo": report.iqm_curve(part.matrix("ppo"))})["IQM at 200"][0]) == "0.44"
    text = report.markdown(part, {"ppo": report.iqm_curve(part.matrix("ppo"))})
    assert "11 of 12 runs" in text and "not finished: 1 of ppo" in text
    (tmp_path / "small" / "ppo-Hopper-v5-5.json").unlink()
    single = report.Results(results.suite, tmp_path / "small")
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
    monkeypatch.setattr(report.plt, "close", figures.append)
    styles = {name: {"label": name} for name in names}
    report.plot_learning_curves(report.Results(Suite.load(str(suite_file)), tmp_path / "small"), styles, tmp_path / "a.png")
    box = figures[0].legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figures[0].bbox.x1


def test_report_without_results_says_how_to_make_them(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        call(report, monkeypatch, suite_file, "--results", tmp_path)
    assert "python -m benchmarks.run small" in capsys.readouterr().err


# Guidance where the truth is known


def test_value_function_of_the_linear_task_is_the_expected_return() -> None:
    task = LinearTask(noise=0.1)
    generator = th.Generator().manual_seed(0)
    n_episodes, length = 20_000, 200
    states = th.tensor([1.0, -0.5]).expand(n_episodes, 2)
    policy = task.policy(n_episodes, length, generator)
    returns = th.zeros(n_episodes)
    for step in range(length):
        actions = policy(states[:, None], slice(step, step + 1))[:, 0]
        returns += task.gamma**step * task.rewards(states, actions)
        shock = th.stack([th.zeros(n_episodes), task.noise * th.randn(n_episodes, generator=generator)], dim=1)
        states = task.expected(states, actions) + shock
    standard_error = returns.std().item() / n_episodes**0.5
    assert returns.mean().item() == pytest.approx(task.values(th.tensor([1.0, -0.5])).item(), abs=4 * standard_error)


def test_particles_choose_better_actions_and_moved_states_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_on_linear_task, "FITS", ((300, 3e-3), (100, 3e-4)))
    monkeypatch.setattr(guidance_on_linear_task, "N_SEGMENTS", 1024)
    rows = list(guidance_on_linear_task.measure(LinearTask(noise=0.0), scales=(1.0,), candidates=(1, 8)))
    by_kind = {(row["guidance"], row["candidates"]): row for row in rows}
    none = by_kind["none", 1]
    for guidance in ("sag", "eag"):
        moved, chosen = by_kind[guidance, 1], by_kind[guidance, 8]
        assert chosen["true"] > none["true"] + 0.05 > moved["true"]
        assert chosen["off"] < 1.1 * none["off"] < moved["off"]


# Sizes that make each measurement a matter of seconds
SMALL_MEASUREMENTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "world_model_error": (["--envs", "Hopper-v5", "--updates", "3"], {"N_TURNS": 2, "TURN_STEPS": 100, "PPO_STEPS": 512}),
    "imagination_health": (["--steps", "1300"], {}),
    "speed": (
        ["--repetitions", "1", "--device", "cpu"],
        {
            "PAPER": {"sampler": "ddpm", "world_model_kwargs": {"network": "mlp", "network_kwargs": {"width": 16}}},
            "REPETITIONS": 1,
            "WARMUP_STEPS": 1280,
            "PAPER_SEGMENTS": 16,
            "SEGMENTS": {"cpu": 16},
            "UPDATES": 2,
            "MATMUL_SIZE": 128,
            "STORE_SIZES": (6_000, 10_000),
        },
    ),
}


def figures(results: Any) -> Iterator[float]:
    """All numbers in a JSON file."""
    if isinstance(results, (int, float)):
        yield results
    elif isinstance(results, (dict, list)):
        for part in results.values() if isinstance(results, dict) else results:
            yield from figures(part)


@pytest.mark.parametrize("name", SMALL_MEASUREMENTS)
def test_measurements_run_at_small_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, constants = SMALL_MEASUREMENTS[name]
    module = importlib.import_module(f"benchmarks.{name}")
    for constant, value in constants.items():
        assert hasattr(module, constant)
        monkeypatch.setattr(module, constant, value)
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--output", str(output)])
    module.main()
    assert capsys.readouterr().out
    measured = list(figures(json.loads(output.read_text())))
    assert len(measured) > 5
    assert np.isfinite(measured).all() and min(measured) >= 0

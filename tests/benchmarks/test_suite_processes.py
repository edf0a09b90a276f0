"""Processes of a suite: on this machine, on a cluster, and after an interrupt."""

import contextlib
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

import pandas as pd
import pytest
import ray
from processes import PATIENCE, wait_for
from ray.cluster_utils import Cluster
from small_suite import call

from benchmarks import report, run
from benchmarks.suite import Run, Suite

ROOT = Path(__file__).parents[2]


# The smoke suite with one of its tasks, and shorter
SMOKE = """
steps: 512
eval_freq: 256
eval_episodes: 1
first_seed: 0
tasks: [CartPole-v1]
gain_every: 1
variants:
  ppo: {algorithm: ppo, n_seeds: 1}
  agdppo: {algorithm: agdppo, n_seeds: 1, settings: {world_model_warmup: 256, world_model_gradient_steps: 5}}
"""


def test_a_suite_is_trained_in_processes_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "smoke.yml"
    file.write_text(SMOKE)
    call(run, monkeypatch, file, "--results", tmp_path, "--jobs", 2)
    table = pd.read_csv(tmp_path / "smoke" / "agdppo-CartPole-v1-0.csv")
    assert table.timesteps.tolist() == [256, 512]
    assert table.return_mean.gt(0).all() and table.wall_seconds.is_monotonic_increasing
    gains = pd.read_csv(tmp_path / "smoke" / "agdppo-CartPole-v1-0.gains.csv")
    assert gains.timesteps.is_monotonic_increasing and len(gains) > 0
    assert gains[["claimed_gain", "true_gain", "guided_error", "unguided_error"]].notna().all(axis=None)
    call(report, monkeypatch, file, "--results", tmp_path)
    assert "## What guidance does" in (tmp_path / "smoke" / "report.md").read_text()
    assert "2 of 2 runs" in capsys.readouterr().out
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
        "variants:\n  ppo: {algorithm: ppo, n_seeds: 1, settings: {n_steps: 64, batch_size: 64}}\n"
        "  broken: {algorithm: ppo, n_seeds: 1, settings: {n_steps: -1}}\n"
    )
    # The driver's node has no CPU to give, so the runs are on the other one
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=2)
        arguments = (file, "--results", tmp_path, "--backend", "ray", "--address", cluster.address)
        with pytest.raises(SystemExit, match="1 of 2 runs failed: broken-CartPole-v1-0"):
            call(run, monkeypatch, *arguments)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert pd.read_csv(tmp_path / "tiny" / "ppo-CartPole-v1-0.csv").timesteps.tolist()[:2] == [256, 512]

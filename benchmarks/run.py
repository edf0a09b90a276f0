"""
Run a suite of benchmarks: each run in a process of its own, through the command line of RL-Zoo with AGDPPO registered,
on one thread. Finished runs are skipped, so an interrupted suite goes on when it is started again::

    python -m benchmarks.run mujoco-100k --jobs 2
    python -m benchmarks.report mujoco-100k
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pandas as pd
from tqdm import tqdm

from benchmarks.suite import RESULTS, Run, Suite, is_complete
from sb3_agd.checkpoint.save_util import replaced_file

ROOT = Path(__file__).parent.parent
PACKAGES = ("sb3_agd", "stable_baselines3", "sb3_contrib", "rl_zoo3", "gymnasium", "mujoco", "torch", "numpy")
# What decides how a training goes
CODE = ("sb3_agd", "hyperparams", "benchmarks/*.py", "benchmarks/suites", "setup.py", "constraints.txt")
# What is shown of the log of a failed run
LOG_LINES = 15
# A run whose machine is lost is started again this many times on a cluster
CLUSTER_RETRIES = 2
# Seconds after which a signal is dealt with at the latest
SIGNAL_DELAY = 1.0


@dataclass(frozen=True)
class Outcome:
    """
    What a run leaves behind.

    :param evaluations: Content of the CSV file, ``None`` if the run failed
    :param log: What it printed
    :param seconds: Duration of the whole process
    :param commit: Commit of the code that ran
    :param machine: Description of the machine it ran on
    :param versions: Versions of the packages it ran with
    :param gains: Content of the CSV file about guidance, ``None`` if there is none
    """

    evaluations: str | None
    log: str
    seconds: float
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    gains: str | None = None


# Runs with their outcomes; whoever closes it ends what still runs
Outcomes = Generator[tuple[Run, Outcome], None, None]


def processor() -> str:
    """Name of the processor as the system gives it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the code, marked if files that runs depend on differ from it; outside of git ``"unknown"``."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def end(process: subprocess.Popen) -> None:
    """
    :param process: Leader of a process group, of which nothing is to remain
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def execute(run: Run) -> Outcome:
    """
    Train one run and wait for it.

    :param run: The run
    :return: Its outcome, also if it failed
    """
    suite = run.suite
    with TemporaryDirectory(prefix=f"{run}-") as folder:
        evaluations = Path(folder) / "evaluations.csv"
        evaluation = {
            "env_id": run.task,
            "seed": run.seed,
            "eval_freq": suite.eval_freq,
            "eval_episodes": suite.eval_episodes,
            "file": str(evaluations),
        }
        callbacks: list[dict[str, Any]] = [{"benchmarks.evaluation.TimedEvaluation": evaluation}]
        gains = Path(folder) / "gains.csv"
        if suite.gain_every > 0 and run.variant.algorithm == "agdppo":
            gain = {"env_id": run.task, "every_n_rollouts": suite.gain_every, "file": str(gains)}
            callbacks.append({"benchmarks.guidance_gain.RecordedGain": gain})
        settings = {**run.variant.settings, "callback": callbacks}
        command = [sys.executable, "-m", "sb3_agd", "train", "--algo", run.variant.algorithm, "--env", run.task]
        command += ["--seed", str(run.seed), "--n-timesteps", str(suite.steps), "--eval-freq", "-1", "--device", suite.device]
        command += ["-conf", run.variant.source, "--log-folder", folder, "--num-threads", "1", "--log-interval", "1000000"]
        command += ["--hyperparams", *(f"{name}:{value!r}" for name, value in settings.items())]
        code, start = commit(), time.perf_counter()
        # A group of its own: an interruption of the suite is dealt with here and not by the zoo, which would save the
        # agent and end as if nothing had happened
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        RUNNING.add(process)
        try:
            log, _ = process.communicate()
        finally:
            end(process)
            RUNNING.discard(process)
        finished = process.returncode == 0 and evaluations.is_file()
        content, gained = (file.read_text() if finished and file.is_file() else None for file in (evaluations, gains))
    return Outcome(
        content,
        log,
        round(time.perf_counter() - start, 1),
        code,
        {"processor": processor(), "cpu_count": os.cpu_count(), "system": platform.system()},
        {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        gained,
    )


# Processes to end when the suite is interrupted
RUNNING: set[subprocess.Popen] = set()


def attempt(result: Callable[[], Any]) -> Outcome:
    """
    :param result: Gives the outcome of a run
    :return: The outcome, a failure if there is none: the run could not be started, or its machine was lost
    """
    try:
        return result()
    except Exception as error:  # Of any kind: it must not end the other runs
        return Outcome(None, f"{type(error).__name__}: {error}", 0.0, commit(), {}, {})


def run_locally(runs: list[Run], jobs: int) -> Outcomes:
    """
    :param runs: What to run, in this order
    :param jobs: Number of runs at a time
    :return: Each run with its outcome, as they come
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(execute, run): run for run in runs}
        pending = set(futures)
        while pending:
            # A signal that reaches another thread, or this one just before it waits, does not end its waiting
            done, pending = wait(pending, SIGNAL_DELAY, FIRST_COMPLETED)
            for future in done:
                yield futures[future], attempt(future.result)
    finally:
        shutdown = Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
        shutdown.start()
        # Some may be about to start
        while shutdown.is_alive():
            for process in list(RUNNING):
                end(process)
            shutdown.join(0.1)


def run_on_cluster(runs: list[Run], address: str | None) -> Outcomes:
    """
    Run on a Ray cluster, one CPU per run. Its machines need this repository and its environment at the same place.

    :param runs: What to run, in this order
    :param address: Address of the cluster, ``None`` for the one that is at hand, or a new one on this machine
    :return: Each run with its outcome, as they come
    """
    import ray

    ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=1, max_retries=CLUSTER_RETRIES)(execute)
        pending = {task.remote(run): run for run in runs}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            run = pending.pop(done)
            yield run, attempt(partial(ray.get, done))
    finally:
        ray.shutdown()


def save(run: Run, outcome: Outcome, results: Path) -> str:
    """
    Write the files of a finished run.

    :param run: The run
    :param outcome: Its outcome
    :param results: Folder of the suite's results
    :return: The last line of its evaluations
    :raises RuntimeError: If the run failed; with the end of its log
    """
    if outcome.evaluations is None or not is_complete(pd.read_csv(StringIO(outcome.evaluations)), run.suite):
        raise RuntimeError("\n".join(outcome.log.splitlines()[-LOG_LINES:]))
    record = {
        "algorithm": run.variant.algorithm,
        "task": run.task,
        "seed": run.seed,
        **run.conditions,
        "commit": outcome.commit,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "seconds": outcome.seconds,
        "machine": outcome.machine,
        "versions": outcome.versions,
    }
    # Without its record, a run does not count as finished: the old one goes first, the new one comes last
    (results / f"{run}.json").unlink(missing_ok=True)
    files = {"gains.csv": outcome.gains, "csv": outcome.evaluations, "json": json.dumps(record, indent=2) + "\n"}
    for suffix, content in files.items():
        if content is None:
            (results / f"{run}.{suffix}").unlink(missing_ok=True)
        else:
            with replaced_file(results / f"{run}.{suffix}", suffix) as file:
                file.write(content.encode())
    return outcome.evaluations.splitlines()[-1]


def main() -> None:
    """Parse the command line and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="YAML file, or the name of one in benchmarks/suites")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="leave out the other variants")
    parser.add_argument("--again", action="store_true", help="replace the results that are there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the folders of results")
    parser.add_argument("--backend", choices=("processes", "ray"), default="processes")
    parser.add_argument("--address", help="address of a Ray cluster (default: the one at hand, or a new one)")
    arguments = parser.parse_args()
    try:
        suite = Suite.load(arguments.suite)
    except ValueError as error:
        parser.error(str(error))
    unknown = set(arguments.only or ()) - set(suite.variants)
    if unknown:
        parser.error(f"--only: the suite has no variant {', '.join(sorted(unknown))}, only {', '.join(suite.variants)}")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    if arguments.address is not None and arguments.backend != "ray":
        parser.error("--address needs --backend ray")
    # Ends like Ctrl-C, with its processes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = arguments.results / suite.name
    results.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in suite.runs() if arguments.only is None or run.name in arguments.only]
    missing = wanted if arguments.again else [run for run in wanted if run.saved(results) is None]
    print(f"{suite.name}: {len(wanted)} runs, {len(wanted) - len(missing)} of them finished before")
    if arguments.backend == "ray":
        outcomes = run_on_cluster(missing, arguments.address)
    else:
        outcomes = run_locally(missing, arguments.jobs)
    failed = []
    # Closed at once, also if a result cannot be written: whatever still runs would run for nothing
    with closing(outcomes), tqdm(total=len(missing), unit="run", smoothing=0) as bar:
        for run, outcome in outcomes:
            try:
                bar.write(f"{run}: {outcome.seconds:.0f} s, {save(run, outcome, results)}")
            except RuntimeError as error:
                failed.append(str(run))
                bar.write(f"{run} failed after {outcome.seconds:.0f} s:\n{error}")
            bar.update()
    if failed:
        sys.exit(f"{len(failed)} of {len(missing)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

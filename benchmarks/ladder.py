"""
What limits AGDPPO on a task: the use of imagination, or the world model. Each arm learns from the same number of transitions,
with the policy settings of ``hyperparams/agdppo.yml``::

    python -m benchmarks.ladder --tasks Walker2d-v5 --steps 30000 --jobs 2

Finished runs are skipped, so an interrupted ladder goes on when it is started again. The table is written to ``report.md``
beside the results.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from inspect import signature
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch as th
from stable_baselines3 import PPO

from benchmarks.evaluation import TimedEvaluation
from benchmarks.run import commit
from benchmarks.settings import algorithm_arguments, load_settings, make_environment, read_settings
from benchmarks.simulator_imagination import SimulatorAGDPPO
from benchmarks.suite import RESULTS
from sb3_agd import AGDPPO
from sb3_agd.checkpoint.save_util import replaced_file

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Reacher-v5", "Ant-v5", "Swimmer-v5")
# Imagined transitions per real one, also where the settings let imagination fade out: the numbers would not be equal otherwise
RATIO = 16
STREAMS = {"n_streams": 128, "guidance": "none"}
# As many and as long as those of PPO
LONG_STREAMS = STREAMS | {"n_streams": RATIO}


@dataclass(frozen=True)
class Arm:
    """
    One way to learn.

    :param algorithm: The algorithm
    :param ratio: Transitions that the policy learns from, per step of the real environment
    :param settings: What differs from ``hyperparams/agdppo.yml``
    """

    algorithm: type[PPO]
    ratio: int = RATIO
    settings: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "P": Arm(PPO, 1),
    "O": Arm(SimulatorAGDPPO),
    "O_unbounded": Arm(SimulatorAGDPPO, settings={"bounded": False}),
    "O_streams": Arm(SimulatorAGDPPO, settings=STREAMS),
    "O_streams_unbounded": Arm(SimulatorAGDPPO, settings=STREAMS | {"bounded": False}),
    "O_long_streams": Arm(SimulatorAGDPPO, settings=LONG_STREAMS),
    "O_long_streams_unbounded": Arm(SimulatorAGDPPO, settings=LONG_STREAMS | {"bounded": False}),
    "L": Arm(AGDPPO),
}
# What a run is made from, besides its folder
ARGUMENTS = ("arm", "task", "seed", "steps", "eval_freq", "eval_episodes")
# The last arm of each difference is subtracted from the first
DIFFERENCES = (("P", "O"), ("O", "L"))


@dataclass(frozen=True)
class Run:
    """
    One training.

    :param arm: Name of the arm
    :param task: Name of the task
    :param seed: Seed
    :param steps: Real steps of AGDPPO. PPO gets 16 times as many
    :param eval_freq: Real steps of AGDPPO between evaluations
    :param eval_episodes: Number of deterministic episodes of an evaluation
    :param folder: Where the results are
    """

    arm: str
    task: str
    seed: int
    steps: int
    eval_freq: int
    eval_episodes: int
    folder: Path

    @property
    def evaluations(self) -> Path:
        """The file of the evaluations."""
        return self.folder / f"{self.arm}-{self.task}-{self.steps}-{self.seed}.csv"

    @property
    def conditions(self) -> dict[str, Any]:
        """What the results depend on besides the code."""
        arm = ARMS[self.arm]
        return {
            **{name: getattr(self, name) for name in ARGUMENTS},
            "scale": RATIO // arm.ratio,
            "settings": read_settings("agdppo.yml")[self.task] | {"synthetic_ratio": RATIO} | arm.settings,
        }

    def is_finished(self) -> bool:
        """Whether the run was finished under the same conditions."""
        record = self.evaluations.with_suffix(".json")
        if not record.is_file() or not self.evaluations.is_file():
            return False
        return self.conditions.items() <= json.loads(record.read_text()).items()


def train(run: Run) -> float:
    """
    Train, evaluate on the way, and leave the evaluations and, at the end, a record of the conditions.

    :param run: The run
    :return: Mean return of the last evaluation
    """
    arm = ARMS[run.arm]
    scale = RATIO // arm.ratio
    settings = load_settings("agdppo", run.task) | {"synthetic_ratio": RATIO} | arm.settings
    # As many transitions per update as there are imagined ones
    settings["n_envs"] *= scale
    arguments = algorithm_arguments(settings)
    if arm.algorithm is PPO:
        arguments = {name: value for name, value in arguments.items() if name in signature(PPO).parameters}
    env = make_environment(run.task, settings, run.seed)
    record = run.evaluations.with_suffix(".json")
    record.unlink(missing_ok=True)
    code = commit()
    evaluation = TimedEvaluation(run.task, run.seed, run.eval_freq * scale, run.eval_episodes, run.evaluations)
    arm.algorithm(env=env, seed=run.seed, device="cpu", **arguments).learn(run.steps * scale, evaluation)
    with replaced_file(record, "json") as file:
        file.write(json.dumps(run.conditions | {"commit": code}, indent=2).encode() + b"\n")
    return float(pd.read_csv(run.evaluations).return_mean.iloc[-1])


def outcomes(runs: list[Run], jobs: int) -> Iterator[tuple[Run, float | BaseException]]:
    """
    :param runs: What to train
    :param jobs: Number of processes, of one thread each
    :return: Each run with the return of its last evaluation, or why it failed, as they come
    """
    # Not forked: threads of PyTorch do not survive that
    with ProcessPoolExecutor(jobs, get_context("spawn"), th.set_num_threads, (1,)) as pool:
        futures = {pool.submit(train, run): run for run in runs}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else error


def load(folder: Path) -> pd.DataFrame:
    """
    :param folder: Where the results are
    :return: One row per evaluation of the runs that are finished with the present settings: ``task``, ``steps`` (length of
        the run), ``arm``, ``seed``, ``real_steps`` and ``return_mean``
    """
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    # A file under another name than its run's would make that run count twice
    runs = dict.fromkeys(Run(**{name: record[name] for name in ARGUMENTS}, folder=folder) for record in records)
    tables = []
    for run in runs:
        if run.arm in ARMS and run.is_finished():
            table = pd.read_csv(run.evaluations)
            conditions = {name: getattr(run, name) for name in ("task", "steps", "arm", "seed")}
            tables.append(table.assign(real_steps=table.timesteps // run.conditions["scale"], **conditions))
    return pd.concat(tables)


def summary(mean: float, std: float, count: float) -> str:
    """
    :param mean: Mean over the seeds
    :param std: Their standard deviation, NaN with one seed
    :param count: Number of seeds
    :return: A cell of the table
    """
    return f"{mean:.4g} ± {std:.3g} ({count:.0f})" if count > 1 else f"{mean:.4g} (1)"


def report(results: pd.DataFrame) -> str:
    """
    :param results: See :func:`load`
    :return: A table for each task in Markdown: for each arm, mean and standard deviation over the seeds, and their number
    """
    explanation = "Mean return ± standard deviation over the seeds (number of seeds). See [the page](../../../docs/ladder.md)."
    lines = ["# The ladder", "", explanation]
    for (task, steps), group in results.groupby(["task", "steps"]):
        arms = [arm for arm in ARMS if arm in set(group.arm)]
        differences = [pair for pair in DIFFERENCES if set(pair) <= set(arms)]
        header = ["real steps", "transitions learned from", *arms, *(f"{first} minus {last}" for first, last in differences)]
        lines += ["", f"## {task}, {steps:,} steps", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for real_steps, part in group.groupby("real_steps"):
            returns = part.groupby("arm").return_mean.agg(["mean", "std", "count"])
            cells = [f"{real_steps:,}", f"{real_steps * RATIO:,}"]
            for arm in arms:
                known = returns.loc[arm] if arm in returns.index else None
                cells.append("" if known is None else summary(*known))
            for first, last in differences:
                both = {first, last} <= set(returns.index)
                cells.append(f"{returns['mean'][first] - returns['mean'][last]:.4g}" if both else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, train what is missing, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["P", "O", "L"], metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--steps", type=int, default=30_000, help="real steps of AGDPPO; PPO gets 16 times as many")
    parser.add_argument("--eval-freq", type=int, default=5_000, help="real steps of AGDPPO between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS / "ladder", help="folder of the results")
    arguments = parser.parse_args()
    if arguments.steps < arguments.eval_freq:
        parser.error("--steps must be at least --eval-freq, or there is nothing to show")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    arguments.results.mkdir(parents=True, exist_ok=True)
    length = (arguments.steps, arguments.eval_freq, arguments.eval_episodes, arguments.results)
    # By seed first: whatever part is finished is a balanced comparison
    order = product(arguments.seeds, arguments.tasks, arguments.arms)
    runs = [Run(arm, task, seed, *length) for seed, task, arm in order]
    missing = [run for run in runs if not run.is_finished()]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before")
    failed = []
    for run, outcome in outcomes(missing, arguments.jobs):
        print(f"{run.evaluations.stem}: {outcome!r}", flush=True)
        if isinstance(outcome, BaseException):
            failed.append(run.evaluations.stem)
    if len(failed) < len(runs):
        text = report(load(arguments.results))
        (arguments.results / "report.md").write_text(text)
        print(text)
    if failed:
        sys.exit(f"{len(failed)} of {len(missing)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

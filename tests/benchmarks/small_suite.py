"""A small suite of benchmarks, and what its runs leave behind."""

import sys

import pytest

from benchmarks import run
from benchmarks.run import Outcome

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


def evaluations(returns: list[float]) -> str:
    rows = [f"{100 * (step + 1)},{value},1.0,{2.0 * (step + 1)}" for step, value in enumerate(returns)]
    return "\n".join(["timesteps,return_mean,return_std,wall_seconds", *rows]) + "\n"


def outcome(returns: list[float] | None, log: str = "") -> Outcome:
    machine, versions = {"processor": "abacus", "cpu_count": 1}, {"stable_baselines3": "2", "torch": "2"}
    return Outcome(None if returns is None else evaluations(returns), log, 1.0, run.commit(), machine, versions)


def call(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]

"""
Time of an environment step with each algorithm of `mujoco-100k`, updates included, on one thread::

    python -m benchmarks.step_time

It is processor time, which other work on the machine hardly changes, and the algorithms take turns. The program prints a table
and writes ``benchmarks/results/step_time.json``.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from benchmarks.run import commit, processor
from benchmarks.settings import algorithm_arguments, load_settings, make_environment
from benchmarks.suite import RESULTS, Suite, Variant

SUITE = "mujoco-100k"
STEP_TIME = "step_time.json"
# All have begun to learn, and AGDPPO to imagine
WARM_UP = 2048
# Steps of a turn: of algorithms with updates after each step, and of those with rollouts, for which these are whole ones
OFF_POLICY_STEPS, ON_POLICY_STEPS = 50, 2048
SEED = 0


def make_agent(variant: Variant, env_id: str) -> BaseAlgorithm:
    """
    :param variant: Algorithm and settings
    :param env_id: Name of the task
    :return: An agent whose next steps are as expensive as any later ones
    """
    settings = load_settings(variant.algorithm, env_id, variant.settings)
    if "learning_starts" in settings:
        settings["learning_starts"] = WARM_UP
    env = make_environment(env_id, settings, SEED)
    agent = ALGOS[variant.algorithm](env=env, seed=SEED, device="cpu", **algorithm_arguments(settings))
    return agent.learn(WARM_UP)


def step_seconds(agent: BaseAlgorithm) -> float:
    """
    :param agent: The agent
    :return: Seconds of processor time per environment step in further training
    """
    before, start = agent.num_timesteps, time.process_time()
    n_steps = OFF_POLICY_STEPS if isinstance(agent, OffPolicyAlgorithm) else ON_POLICY_STEPS
    agent.learn(n_steps, reset_num_timesteps=False)
    return (time.process_time() - start) / (agent.num_timesteps - before)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # A setting that falls in the course of the training, as the ratio on HalfCheetah-v5, would be near its end
    parser.add_argument("--env", default="Hopper-v5", help="task, one without schedules")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / STEP_TIME)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    variants = Suite.load(SUITE).variants
    agents = {name: make_agent(variant, arguments.env) for name, variant in variants.items()}
    turns = [{name: step_seconds(agent) for name, agent in agents.items()} for _ in tqdm(range(arguments.turns), unit="turn")]
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in agents}
    ratios = {name: float(np.median([turn[name] / turn["ppo"] for turn in turns])) for name in agents}
    table = Table("variant", "milliseconds per step", "in PPO's", title=arguments.env)
    for name in sorted(medians, key=lambda name: ratios[name]):
        table.add_row(name, f"{1000 * medians[name]:.3g}", f"{ratios[name]:.3g}")
    Console().print(table)
    record = {
        "env": arguments.env,
        "processor": processor(),
        "turns": arguments.turns,
        "commit": commit(),
        "milliseconds per step": {name: round(1000 * seconds, 3) for name, seconds in medians.items()},
        "ratio to PPO": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""
What imagination and the training of the world model cost, on the shapes of HalfCheetah-v5::

    python -m benchmarks.speed --threads 1

All figures are medians of interleaved repetitions of one run: on a machine with other work, only their ratios mean
something. The program prints a table and writes ``benchmarks/results/speed-cpu-1.json`` (device and number of threads).
"""

import argparse
import inspect
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.run import commit, processor
from benchmarks.settings import algorithm_arguments, load_settings, make_environment
from benchmarks.suite import RESULTS
from sb3_agd import AGDPPO, AugmentedRolloutBuffer
from sb3_agd.experience.replay_buffer import ARRAYS, ReplayBuffer
from sb3_agd.experience.segment_source import ReplaySegmentSource
from sb3_agd.imagination import Guidance
from sb3_agd.imagination.guides import SigmoidAdvantageGuide

Algorithm = TypeVar("Algorithm", bound=PPO)

ENV_ID = "HalfCheetah-v5"
REPETITIONS = 7
# The setting of the paper
PAPER: dict[str, Any] = {
    "sampler": "ddpm",
    "n_denoising_steps": 128,
    "guidance_mode": "gradient",
    "horizon": 10,
    "world_model_kwargs": {"network": "mlp", "network_kwargs": {"width": 1024, "depth": 6}},
}
PAPER_SEGMENTS = 512
SEGMENTS = {"cpu": 512, "cuda": 8192}
# Newest transitions that training prefers
RECENT = 5120
# Steps of training before anything is timed
WARMUP_STEPS = 2048
# Updates of the world model that are timed together
UPDATES = 20
MATMUL_SIZE = 2048
BUFFER_SIZES = (10_000, 1_000_000)
# What the methods of an agent's imagination count as
IMAGINATION_PARTS = {
    "fit": "fit",
    "imagine_rows": "imagine",
    "finish_rollout": "bookkeeping",
    "test": "bookkeeping",
}


def median_seconds(tasks: dict[str, Callable[[], Any]], repetitions: int, device: th.device) -> dict[str, float]:
    """
    :param tasks: What to time, by name; the repetitions of all of them are interleaved
    :param repetitions: How often each task is timed, after once without timing
    :param device: Device that has to be waited for
    :return: Median seconds of each task
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if device.type == "cuda":
                th.cuda.synchronize()
            if repetition > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def make_agent(algorithm: type[Algorithm], device: th.device, **changes: Any) -> Algorithm:
    """
    :param algorithm: AGDPPO or PPO
    :param device: Device
    :param changes: What differs from AGDPPO's settings for the task
    :return: The agent
    """
    settings = load_settings("agdppo", ENV_ID)
    # What is measured is the beginning of a long run, before schedules fall to 0
    settings |= {name: value(1.0) for name, value in settings.items() if callable(value)}
    env = make_environment(ENV_ID, settings, seed=0)
    arguments = algorithm_arguments(settings) | changes
    if algorithm is PPO:
        known = inspect.signature(PPO).parameters
        arguments = {name: value for name, value in arguments.items() if name in known}
    return algorithm(env=env, seed=0, device=device, **arguments)


def imagination_task(agent: AGDPPO, n_segments: int) -> Callable[[], Any]:
    """
    :param agent: The agent
    :param n_segments: Segments to imagine
    :return: What is timed: guided imagination
    """
    imagination = agent.imagination
    env_indices, rows = imagination.replay_buffer.recent_transitions(len(imagination.replay_buffer))
    chosen = np.random.default_rng(0).integers(len(rows), size=n_segments)
    env_indices, rows = env_indices[chosen], rows[chosen]
    starts = th.as_tensor(imagination.replay_buffer.observations[env_indices, rows], device=agent.device)
    generator = imagination.generator(0)
    settings = agent.settings
    scale = 1.0 if settings.guidance_mode == "select" else 0.3
    guidance = Guidance(SigmoidAdvantageGuide(), settings.guidance_mode, scale, settings.n_candidates)
    return lambda: imagination.imagine(starts, guidance, generator)


def imagined_per_start(agent: AGDPPO) -> int:
    """
    :param agent: The agent
    :return: Transitions that it imagines from each start state
    """
    settings = agent.settings
    return settings.horizon * (settings.n_candidates if settings.guidance_mode == "select" else 1)


def fit_task(agent: AGDPPO, buffer: ReplayBuffer) -> Callable[[], Any]:
    """
    :param agent: The agent
    :param buffer: Training data
    :return: What is timed: some updates of its world model
    """
    generator, rng = agent.imagination.generator(0), np.random.default_rng(0)

    def fit() -> None:
        source = ReplaySegmentSource(buffer, agent.settings.horizon, RECENT, rng)
        agent.world_model.fit(source, UPDATES, agent.settings.world_model_batch_size, generator=generator)

    return fit


def filled_buffer(n_transitions: int, observation_dim: int, action_dim: int) -> ReplayBuffer:
    """
    :param n_transitions: Number of transitions
    :param observation_dim: Length of an observation
    :param action_dim: Length of an action
    :return: A replay buffer with that many transitions, in episodes of 1000
    """
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(max(BUFFER_SIZES) + 2, 1, observation_dim, action_dim)
    observations = rng.normal(size=(1001, 1, observation_dim)).astype(np.float32)
    actions = rng.normal(size=(1000, 1, action_dim)).astype(np.float32)
    never, always = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)
    for transition in range(n_transitions):
        step = transition % 1000
        last = step == 999
        # Every fifth episode ends in a terminal state, so that the classifier has something to learn
        terminal = always if last and transition % 5000 == 4999 else never
        buffer.add(
            observations[step],
            actions[step],
            observations[step, :, 0],
            observations[step + 1],
            terminal,
            always if last else never,
        )
    return buffer


def flops(task: Callable[[], Any]) -> int:
    """
    :param task: Something that computes with torch
    :return: Floating-point operations of its matrix products
    """
    counter = FlopCounterMode(display=False)
    with counter:
        task()
    return counter.get_total_flops()


def step_seconds(agent: PPO, n_rollouts: int) -> float:
    """
    :param agent: The agent
    :param n_rollouts: Number of rollouts to train for
    :return: Seconds per environment step
    """
    n_steps = n_rollouts * agent.n_steps * agent.n_envs
    start = time.perf_counter()
    agent.learn(n_steps, reset_num_timesteps=False)
    return (time.perf_counter() - start) / n_steps


def training_split(agent: AGDPPO, n_rollouts: int) -> dict[str, float]:
    """
    :param agent: The agent
    :param n_rollouts: Number of rollouts to train for
    :return: Seconds per environment step, in all and for each part; small rests are part of no part
    """
    parts = dict.fromkeys(("environment", "fit", "imagine", "bookkeeping", "update"), 0.0)

    def timed(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start, others = time.perf_counter(), sum(parts.values())
            result = function(*args, **kwargs)
            # Without what was timed within it: all but the update goes on while the rollout is collected
            parts[name] += time.perf_counter() - start - (sum(parts.values()) - others)
            return result

        return call

    owners: dict[Any, dict[str, str]] = {
        agent: {"collect_rollouts": "environment", "train": "update"},
        agent.imagination: IMAGINATION_PARTS,
        agent.imagination.recorder: {"record": "bookkeeping"},
    }
    for owner, methods in owners.items():
        for method, name in methods.items():
            setattr(owner, method, timed(name, getattr(owner, method)))
    total = step_seconds(agent, n_rollouts)
    buffer = agent.rollout_buffer
    assert isinstance(buffer, AugmentedRolloutBuffer) and buffer.n_imagined > 0, "Nothing was imagined in what was timed"
    for owner, methods in owners.items():
        for method in methods:
            delattr(owner, method)
    n_steps = n_rollouts * agent.n_steps * agent.n_envs
    return {"total": total, **{name: seconds / n_steps for name, seconds in parts.items()}}


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--output", type=Path, help="default: speed-DEVICE-THREADS.json in benchmarks/results")
    arguments = parser.parse_args()
    output = arguments.output or RESULTS / f"speed-{arguments.device}-{arguments.threads}.json"
    if arguments.repetitions < REPETITIONS:
        parser.error(f"--repetitions must be at least {REPETITIONS}")
    th.set_num_threads(arguments.threads)
    device = th.device(arguments.device)
    n_segments = SEGMENTS[device.type]

    agent, baseline = make_agent(AGDPPO, device), make_agent(PPO, device)
    # The settings for the task have larger policy networks than SB3's default
    default = make_agent(AGDPPO, device, policy_kwargs=None)
    paper, default_paper = (
        make_agent(AGDPPO, device, **PAPER, **changes, world_model_gradient_steps=1)
        for changes in ({}, {"policy_kwargs": None})
    )
    for learner in (agent, baseline, default, paper, default_paper):
        learner.learn(WARMUP_STEPS)
    size = agent.imagination.observation_codec.size, agent.imagination.action_codec.size
    buffers = {n: filled_buffer(n, *size) for n in BUFFER_SIZES}

    matrix = th.randn(MATMUL_SIZE, MATMUL_SIZE, device=device)
    imaginers = {
        "imagine": (agent, n_segments),
        "imagine_default": (default, n_segments),
        "imagine_paper": (paper, PAPER_SEGMENTS),
        "imagine_default_paper": (default_paper, PAPER_SEGMENTS),
    }
    tasks = {
        **{name: imagination_task(imaginer, n) for name, (imaginer, n) in imaginers.items()},
        "matmul": lambda: matrix @ matrix,
        **{f"fit_{n}": fit_task(agent, buffer) for n, buffer in buffers.items()},
    }
    seconds = median_seconds(tasks, arguments.repetitions, device)
    splits = [(training_split(agent, 2), step_seconds(baseline, 2)) for _ in range(arguments.repetitions)]

    matmul_rate = 2 * MATMUL_SIZE**3 / seconds["matmul"]
    small, large = (seconds[f"fit_{n}"] / UPDATES for n in BUFFER_SIZES)
    rates = {name: n * imagined_per_start(imaginer) / seconds[name] for name, (imaginer, n) in imaginers.items()}
    buffer = buffers[max(BUFFER_SIZES)]
    n_rows = buffer.position.max() + 1
    stored_bytes = sum(getattr(buffer, name)[:, :n_rows].nbytes for name in ARRAYS) / len(buffer)
    # The candidates are imagined, and an unguided segment for each group of them
    learned = rates["imagine"] / (agent.settings.n_candidates + 1)
    figures: dict[str, Any] = {
        "imagined transitions per second": rates["imagine"],
        "transitions to learn from, per second": learned,
        "imagined transitions per second, paper": rates["imagine_paper"],
        "ratio to the paper": rates["imagine"] / rates["imagine_paper"],
        "ratio to the paper of those to learn from": learned / rates["imagine_paper"],
        "imagined transitions per second, SB3's default networks": rates["imagine_default"],
        "ratio to the paper, SB3's default networks": rates["imagine_default"] / rates["imagine_default_paper"],
        "world-model updates per second": 1 / small,
        "share of the matmul limit, world-model update": flops(tasks[f"fit_{min(BUFFER_SIZES)}"])
        / UPDATES
        / small
        / matmul_rate,
        "share of the matmul limit, imagination": flops(tasks["imagine"]) / seconds["imagine"] / matmul_rate,
        "matmul GFLOP/s": matmul_rate / 1e9,
        "time of an update at 1,000,000 transitions to 10,000": large / small,
        "bytes per stored transition": stored_bytes,
        "bytes per number of a stored transition": stored_bytes / (sum(size) + 1),
        "AGDPPO's time per step to PPO's": float(np.median([ours["total"] / theirs for ours, theirs in splits])),
    }
    for part in ("environment", "fit", "imagine", "bookkeeping", "update"):
        figures[f"share of AGDPPO's time, {part}"] = float(np.median([ours[part] / ours["total"] for ours, _ in splits]))
    table = Table(title=f"{arguments.device}, {arguments.threads} threads", show_header=False)
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.4g}")
    Console().print(table)
    record = {
        "device": th.cuda.get_device_name() if device.type == "cuda" else processor(),
        "cpu_count": os.cpu_count(),
        "threads": arguments.threads,
        "repetitions": arguments.repetitions,
        "python": platform.python_version(),
        "torch": th.__version__,
        "commit": commit(),
        **figures,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

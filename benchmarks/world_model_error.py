"""
How far the world model's segments stray from the simulator, given the true actions::

    python -m benchmarks.world_model_error

Data: turns of 2,000 steps, uniformly random and by a PPO agent that was trained for 20,000 steps and acts
stochastically, in turn. The last turn is held out. Errors are root mean squared errors of the states after each
step, in standard deviations of the observations, beside the error of the forecast "persistence".
"""

import argparse
import json
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO

from sb3_agd import DiffusionWorldModel
from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.experience.segment_source import ReplaySegmentSource

N_TURNS = 10
TURN_STEPS = 2_000
# Transitions of a segment
HORIZON = 8
PPO_STEPS = 20_000


def collect(env_id: str, seed: int) -> tuple[ReplayBuffer, ReplayBuffer]:
    """
    :param env_id: Task with continuous observations and actions
    :param seed: Seed of the agent and of the environment
    :return: Transitions for training and held-out ones
    """
    agent = PPO("MlpPolicy", env_id, seed=seed, device="cpu").learn(PPO_STEPS)
    env = gym.make(env_id)
    env.action_space.seed(seed)
    assert isinstance(env.action_space, gym.spaces.Box) and env.observation_space.shape is not None
    dims = (env.observation_space.shape[0], env.action_space.shape[0])
    buffers = (ReplayBuffer(2 * N_TURNS * TURN_STEPS, 1, *dims), ReplayBuffer(2 * TURN_STEPS, 1, *dims))
    for turn in range(N_TURNS):
        buffer = buffers[turn == N_TURNS - 1]
        observation, _ = env.reset(seed=seed + turn)
        for step in range(TURN_STEPS):
            action = env.action_space.sample()
            if turn % 2 == 1:
                action = np.clip(agent.predict(observation)[0], env.action_space.low, env.action_space.high)
            following, reward, terminated, truncated, _ = env.step(action)
            end = terminated or truncated or step == TURN_STEPS - 1
            rows = (np.array([value]) for value in (observation, action, reward, following, terminated, end))
            buffer.add(*rows)
            observation = env.reset()[0] if terminated or truncated else following
    return buffers


def fit_and_test(env_id: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """
    :param env_id: Task
    :param arguments: Command line
    :return: Errors per step of the model and of "persistence"; milliseconds per update, one entry
    """
    training, held_out = collect(env_id, arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    model = DiffusionWorldModel(training.observation_dim, training.action_dim, HORIZON, seed=arguments.seed)
    everything = training.segments(*training.recent_transitions(training.capacity_per_env), horizon=1)
    columns = (everything.observations[:, 1], everything.actions[:, 0], everything.rewards[:, 0])
    model.observe(*columns, everything.terminations[:, 0])
    generator = th.Generator().manual_seed(arguments.seed)
    start = time.perf_counter()
    model.fit(
        ReplaySegmentSource(training, model.horizon, N_TURNS * TURN_STEPS, rng),
        arguments.updates,
        arguments.batch_size,
        generator=generator,
    )
    duration = time.perf_counter() - start
    segments = held_out.segments(*held_out.recent_transitions(held_out.capacity_per_env), model.horizon)
    imagined = model.predict(segments.observations[:, 0], segments.actions, generator)
    errors = segment_errors(model, imagined, segments)
    return {
        "states": errors["states"].tolist(),
        "persistence": errors["persistence"].tolist(),
        "milliseconds_per_update": [1000 * duration / arguments.updates],
    }


def main() -> None:
    """Parse the command line, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--updates", type=int, default=4_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    results = {env_id: fit_and_test(env_id, arguments) for env_id in arguments.envs}
    for env_id, errors in results.items():
        table = Table(title=f"{env_id}, {arguments.updates:,} updates, seed {arguments.seed}")
        for column in ("step", "world model", "persistence"):
            table.add_column(column, justify="right")
        for step, (states, baseline) in enumerate(zip(errors["states"], errors["persistence"], strict=True), 1):
            table.add_row(str(step), f"{states:.3f}", f"{baseline:.3f}")
        Console().print(table, f"{errors['milliseconds_per_update'][0]:.1f} ms per update")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"arguments": {**vars(arguments), "output": None}, **results}, indent=1))


if __name__ == "__main__":
    main()

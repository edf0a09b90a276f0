"""
Does guidance choose better actions, or does it only bend the dynamics? On a linear task with quadratic rewards the
value function of a linear-Gaussian policy is known in closed form, and with it the true advantage of every action::

    python -m benchmarks.guidance_on_linear_task

A world model is trained on the task, and segments are imagined with each kind of guidance, with the true value
function as the critic. For each the program prints, in standard deviations of the one-step advantage and of the states:

- claimed: the advantage of the imagined transitions as a guide computes it, from imagined rewards and next states;
- true: the expected advantage of the imagined actions in the true dynamics;
- off: how far the imagined next states are from the expected ones, root mean square (where the task is
  deterministic, the world model's own error).
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch as th
from rich.console import Console
from rich.table import Table

from sb3_agd.imagination import Critic, Guide
from sb3_agd.imagination.guides import GUIDES, select_candidates
from sb3_agd.world_model import DiffusionWorldModel, Segments

HORIZON = 8
EPISODES, EPISODE_LENGTH = 100, 200
# Updates of the world model, each with its learning rate
FITS = ((3000, 3e-3), (1000, 3e-4))
N_SEGMENTS = 4096
SCALES = (0.3, 1.0, 3.0)
CANDIDATES = (1, 4, 16)


@dataclass(frozen=True)
class LinearTask:
    """
    A mass that is to be held at the origin: position and velocity, pushed by a force.

    :param noise: Standard deviation of the random change of the velocity per step
    """

    noise: float
    gamma: float = 0.95
    time_step: float = 0.1
    action_cost: float = 0.1
    action_std: float = 0.5

    @property
    def drift(self) -> th.Tensor:
        """What becomes of a state by itself, shape (2, 2)."""
        return th.tensor([[1.0, self.time_step], [0.0, 1.0]])

    @property
    def push(self) -> th.Tensor:
        """What an action does, shape (2, 1)."""
        return th.tensor([[0.0], [self.time_step]])

    @property
    def gain(self) -> th.Tensor:
        """The policy is Gaussian around ``-gain @ state``, shape (1, 2)."""
        return th.tensor([[0.5, 0.8]])

    @property
    def state_cost(self) -> th.Tensor:
        """Cost of a state, a quadratic form, shape (2, 2)."""
        return th.diag(th.tensor([1.0, 0.1]))

    def expected(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: Shape (..., 2)
        :param actions: Shape (..., 1)
        :return: Expected next states, shape (..., 2)
        """
        return states @ self.drift.T + actions @ self.push.T

    def rewards(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: Shape (..., 2)
        :param actions: Shape (..., 1)
        :return: Shape (...)
        """
        return -quadratic(self.state_cost, states) - self.action_cost * actions.squeeze(-1) ** 2

    @cached_property
    def value_function(self) -> tuple[th.Tensor, float]:
        """``P`` and ``c`` of the policy's value function ``V(s) = -s' P s - c``, by iteration of Bellman's equation."""
        closed = self.drift - self.push @ self.gain
        running = self.state_cost + self.action_cost * self.gain.T @ self.gain
        matrix = running
        for _ in range(1000):
            matrix = running + self.gamma * closed.T @ matrix @ closed
        action_share = self.action_std**2 * (self.action_cost + self.gamma * quadratic(matrix, self.push.T).item())
        noise_share = self.gamma * self.noise**2 * matrix[1, 1].item()
        return matrix, (action_share + noise_share) / (1 - self.gamma)

    def values(self, states: th.Tensor) -> th.Tensor:
        """
        :param states: Shape (..., 2)
        :return: True values of the policy, shape (...)
        """
        matrix, constant = self.value_function
        return -quadratic(matrix, states) - constant

    def advantages(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: Shape (..., 2)
        :param actions: Shape (..., 1)
        :return: True expected advantages, shape (...)
        """
        matrix, _ = self.value_function
        following = self.values(self.expected(states, actions)) - self.noise**2 * matrix[1, 1]
        return self.rewards(states, actions) + self.gamma * following - self.values(states)

    def policy(self, n_segments: int, horizon: int, generator: th.Generator) -> "FixedNoise":
        """
        :param n_segments: Number of segments
        :param horizon: Transitions of a segment
        :param generator: Source of the noise
        :return: The policy with its noise drawn once
        """
        return FixedNoise(self.gain, self.action_std * th.randn(n_segments, horizon, 1, generator=generator))


@dataclass(frozen=True)
class FixedNoise:
    """
    The linear policy.

    :param gain: Shape (1, 2)
    :param noise: Shape (B, H, 1)
    """

    gain: th.Tensor
    noise: th.Tensor

    def __call__(self, states: th.Tensor, steps: slice) -> th.Tensor:
        return self.noise[:, steps] - states @ self.gain.T


def quadratic(matrix: th.Tensor, vectors: th.Tensor) -> th.Tensor:
    """
    :param matrix: Shape (n, n)
    :param vectors: Shape (..., n)
    :return: ``v' M v`` of each vector, shape (...)
    """
    return ((vectors @ matrix) * vectors).sum(-1)


class Recording:
    """
    Random episodes of a task.

    :param task: The task
    :param generator: Source of all randomness
    """

    termination_rate = 0.0

    def __init__(self, task: LinearTask, generator: th.Generator):
        self.generator = generator
        states = [th.randn(EPISODES, 2, generator=generator)]
        policy = task.policy(EPISODES, EPISODE_LENGTH, generator)
        actions = []
        for step in range(EPISODE_LENGTH):
            actions.append(policy(states[-1][:, None], slice(step, step + 1))[:, 0])
            shock = th.zeros(EPISODES, 2)
            shock[:, 1] = task.noise * th.randn(EPISODES, generator=generator)
            states.append(task.expected(states[-1], actions[-1]) + shock)
        self.states, self.actions = th.stack(states, 1), th.stack(actions, 1)
        self.rewards = task.rewards(self.states[:, :-1], self.actions)

    def segments(self, n_segments: int) -> Segments[th.Tensor]:
        """
        :param n_segments: Number of windows
        :return: Random windows
        """
        episodes = th.randint(EPISODES, (n_segments, 1), generator=self.generator)
        steps = th.randint(EPISODE_LENGTH - HORIZON + 1, (n_segments, 1), generator=self.generator) + th.arange(HORIZON + 1)
        inner = steps[:, :-1]
        mask = th.ones(n_segments, HORIZON, dtype=th.bool)
        return Segments(
            self.states[episodes, steps], self.actions[episodes, inner], self.rewards[episodes, inner], ~mask, mask
        )

    def terminal_transitions(self, n_transitions: int) -> Segments[th.Tensor]:
        """Nothing ever ends."""
        raise NotImplementedError


def train(task: LinearTask, recording: Recording) -> DiffusionWorldModel:
    """
    :param task: The task
    :param recording: Its data
    :return: A world model of it
    """
    model = DiffusionWorldModel(observation_dim=2, action_dim=1, horizon=HORIZON, network_kwargs={"width": 64}, seed=0)
    n_transitions = recording.rewards.numel()
    model.observe(
        recording.states[:, 1:].flatten(0, 1),
        recording.actions.flatten(0, 1),
        recording.rewards.flatten(),
        th.zeros(n_transitions),
    )
    for gradient_steps, learning_rate in FITS:
        model.fit(recording, gradient_steps, 256, learning_rate, recording.generator)
    return model


def imagine(
    task: LinearTask,
    model: DiffusionWorldModel,
    starts: th.Tensor,
    guide: Guide | None,
    critic: Critic,
    scale: float,
    n_candidates: int,
) -> Segments[th.Tensor]:
    """
    :param task: The task
    :param model: World model
    :param starts: Start states, shape (B, 2)
    :param guide: The guide, ``None`` for none
    :param critic: The critic
    :param scale: Strength of the guidance
    :param n_candidates: Candidates for each segment; with 1, the guide moves the states instead
    :return: Imagined segments
    """
    generator = th.Generator().manual_seed(1)
    candidates = starts.repeat_interleave(n_candidates, dim=0)
    policy = task.policy(len(candidates), HORIZON, generator)
    if guide is None or n_candidates == 1:
        objective = None if guide is None else partial(guide.checked_objective, critic=critic)
        return model.imagine(candidates, policy, objective, scale, generator)
    segments = model.imagine(candidates, policy, generator=generator, n_candidates=n_candidates)
    chosen = select_candidates(guide.objective(segments, critic), n_candidates, scale, generator)
    return segments.map(lambda array: array[chosen])


def measure(task: LinearTask, scales: tuple[float, ...] = SCALES, candidates: tuple[int, ...] = CANDIDATES) -> Iterator[dict]:
    """
    :param task: The task
    :param scales: Strengths of the guidance
    :param candidates: Numbers of candidates
    :return: One row per kind of guidance
    """
    generator = th.Generator().manual_seed(0)
    recording = Recording(task, generator)
    model = train(task, recording)
    starts = recording.segments(N_SEGMENTS).observations[:, 0]
    spread = recording.states.flatten(0, 1).std(0)
    unit = task.advantages(recording.states[:, :-1], recording.actions).std().item()
    critic = Critic(task.values, lambda rewards: rewards, task.gamma, unit)
    kinds: list[tuple[str, int, float]] = [("none", 1, 0.0)]
    kinds += [(name, n_candidates, scale) for name in GUIDES for n_candidates in candidates for scale in scales]
    for name, n_candidates, scale in kinds:
        guide = None if name == "none" else GUIDES[name]()
        segments = imagine(task, model, starts, guide, critic, scale, n_candidates)
        states, following = segments.observations[:, :-1], segments.observations[:, 1:]
        off = (following - task.expected(states, segments.actions)) / spread
        yield {
            "noise": task.noise,
            "guidance": name,
            "candidates": n_candidates,
            "scale": scale,
            "claimed": critic.advantages(segments).mean().item(),
            "true": task.advantages(states, segments.actions).mean().item() / unit,
            "off": off.square().mean().sqrt().item(),
        }


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=None, help="also write the figures to this CSV file")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    rows = [row for noise in (0.0, 0.1) for row in measure(LinearTask(noise))]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if arguments.output is not None:
        pd.DataFrame(rows).round(4).to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()

"""Random episodes that are recorded both in a replay buffer and in plain lists."""

import io
from dataclasses import dataclass, field

import numpy as np

from sb3_agd.experience.replay_buffer import ReplayBuffer

OBSERVATION_DIM, ACTION_DIM = 3, 2


@dataclass(frozen=True)
class Transition:
    observation: np.ndarray
    action: np.ndarray
    reward: np.float32
    next_observation: np.ndarray
    termination: bool


@dataclass
class SyntheticEnv:
    """One environment: the episodes so far, and the state that it is in."""

    number: int
    rng: np.random.Generator
    max_length: int
    n_states: int = 0
    episodes: list[list[Transition]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.state = self.new_state()
        self.remaining = int(self.rng.integers(1, self.max_length + 1))
        self.episodes.append([])

    def new_state(self) -> np.ndarray:
        """No two states are the same, so that each identifies its transition."""
        self.n_states += 1
        return np.array([self.number, self.n_states, self.rng.normal()], dtype=np.float32)

    def step(self) -> tuple[Transition, bool]:
        self.remaining -= 1
        over = self.remaining == 0
        transition = Transition(
            observation=self.state,
            action=self.rng.normal(size=ACTION_DIM).astype(np.float32),
            reward=np.float32(self.rng.normal()),
            next_observation=self.new_state(),
            # Half of the episodes run into a time limit
            termination=over and bool(self.rng.random() < 0.5),
        )
        self.episodes[-1].append(transition)
        self.state = transition.next_observation
        if over:
            self.reset()
        return transition, over


class SyntheticRecorder:
    """
    Environments whose transitions go both to a buffer and to plain lists.

    :param capacity_per_env: States that the buffer holds per environment
    :param n_envs: Number of environments
    :param seed: Seed of everything random
    :param max_length: Longest possible episode
    """

    def __init__(self, capacity_per_env: int, n_envs: int = 1, seed: int = 0, max_length: int = 30):
        self.capacity_per_env = capacity_per_env
        self.replay_buffer = ReplayBuffer(capacity_per_env * n_envs, n_envs, OBSERVATION_DIM, ACTION_DIM)
        self.rng = np.random.default_rng(seed)
        self.envs = [SyntheticEnv(number, self.rng, max_length) for number in range(n_envs)]

    def run(self, n_steps: int, interruption_probability: float = 0.0, *others: ReplayBuffer) -> None:
        for _ in range(n_steps):
            if self.rng.random() < interruption_probability:
                self.interrupt(*others)
            transitions, overs = zip(*(env.step() for env in self.envs), strict=True)
            for buffer in (self.replay_buffer, *others):
                buffer.add(
                    np.stack([t.observation for t in transitions]),
                    np.stack([t.action for t in transitions]),
                    np.stack([t.reward for t in transitions]),
                    np.stack([t.next_observation for t in transitions]),
                    np.array([t.termination for t in transitions]),
                    np.array(overs),
                )

    def interrupt(self, *others: ReplayBuffer) -> None:
        """Reset all environments from outside."""
        for buffer in (self.replay_buffer, *others):
            buffer.close_episodes()
        for env in self.envs:
            if env.episodes[-1]:
                env.reset()

    def held(self, env: SyntheticEnv) -> list[tuple[int, int]]:
        """
        Episode and position of each transition that the buffer must still hold, oldest first: as many of the newest as
        fit, if each transition takes one index and each episode one more for its last state.
        """
        positions = [(e, i) for e, episode in enumerate(env.episodes) for i in range(len(episode))]
        kept: list[tuple[int, int]] = []
        for position in reversed(positions):
            n_episodes = len({e for e, _ in kept} | {position[0]})
            if len(kept) + 1 + n_episodes > self.capacity_per_env:
                break
            kept.insert(0, position)
        return kept

    def all_held(self) -> list[tuple[int, int, int]]:
        return [(env.number, *position) for env in self.envs for position in self.held(env)]

    def locate(self, env_indices: np.ndarray, indices: np.ndarray) -> list[tuple[int, int, int]]:
        """Environment, episode and position of the transitions at the given indices of the buffer."""
        index = {
            transition.observation.tobytes(): (env.number, e, i)
            for env in self.envs
            for e, episode in enumerate(env.episodes)
            for i, transition in enumerate(episode)
        }
        return [index[state.tobytes()] for state in self.replay_buffer.observations[env_indices, indices]]

    def check_segments(self, env_indices: np.ndarray, indices: np.ndarray, horizon: int) -> None:
        segments = self.replay_buffer.segments(env_indices, indices, horizon).map(lambda tensor: tensor.numpy())
        assert segments.observations.shape == (len(indices), horizon + 1, OBSERVATION_DIM)
        assert segments.actions.shape == (len(indices), horizon, ACTION_DIM)
        assert segments.rewards.shape == segments.terminations.shape == segments.mask.shape == (len(indices), horizon)
        for number, (env, e, i) in enumerate(self.locate(env_indices, indices)):
            real = self.envs[env].episodes[e][i : i + horizon]
            n_padded = horizon - len(real)
            padded = real + [real[-1]] * n_padded
            states = [real[0].observation, *(t.next_observation for t in padded)]
            assert np.array_equal(segments.observations[number], np.stack(states))
            assert np.array_equal(segments.actions[number], np.stack([t.action for t in padded]))
            assert np.array_equal(segments.rewards[number], np.stack([t.reward for t in padded]))
            assert segments.mask[number].tolist() == [True] * len(real) + [False] * n_padded
            assert segments.terminations[number].tolist() == [t.termination for t in real] + [False] * n_padded

    def check(self, horizon: int) -> None:
        """The buffer holds the same transitions as the lists, and all segments of them are right."""
        env_indices, indices = self.replay_buffer.recent_transitions(self.capacity_per_env * len(self.envs))
        assert len(self.replay_buffer) == len(indices)
        assert self.locate(env_indices, indices) == self.all_held()
        self.check_segments(env_indices, indices, horizon)


def saved(buffer: ReplayBuffer) -> bytes:
    file = io.BytesIO()
    buffer.save(file)
    return file.getvalue()


def contents(buffer: ReplayBuffer) -> list[np.ndarray]:
    transitions = buffer.recent_transitions(buffer.capacity_per_env * buffer.n_envs)
    segments = buffer.segments(*transitions, horizon=4)
    return [*transitions, segments.observations, segments.actions, segments.rewards, segments.terminations, segments.mask]


def assert_same_contents(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)

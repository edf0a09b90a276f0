"""The store of real transitions against plain lists of episodes."""

import io
import itertools
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_agd.experience.replay_buffer import ARRAYS, ReplayBuffer, ReplaySegmentSource

OBSERVATION_DIM, ACTION_DIM = 3, 2


@dataclass(frozen=True)
class Transition:
    observation: np.ndarray
    action: np.ndarray
    reward: np.float32
    next_observation: np.ndarray
    termination: bool


@dataclass
class Stream:
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
        """No two states are the same, so that each tells where it comes from."""
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
    Environments whose transitions go both to a store and to plain lists.

    :param n_rows: Rows of the store per environment
    :param n_envs: Number of environments
    :param seed: Seed of everything random
    :param max_length: Longest possible episode
    """

    def __init__(self, n_rows: int, n_envs: int = 1, seed: int = 0, max_length: int = 30):
        self.n_rows = n_rows
        self.replay_buffer = ReplayBuffer(n_rows * n_envs, n_envs, OBSERVATION_DIM, ACTION_DIM)
        self.rng = np.random.default_rng(seed)
        self.env_indices = [Stream(number, self.rng, max_length) for number in range(n_envs)]

    def run(self, n_steps: int, interruption_probability: float = 0.0, *others: ReplayBuffer) -> None:
        for _ in range(n_steps):
            if self.rng.random() < interruption_probability:
                self.interrupt(*others)
            transitions, overs = zip(*(stream.step() for stream in self.env_indices), strict=True)
            for store in (self.replay_buffer, *others):
                store.add(
                    np.stack([t.observation for t in transitions]),
                    np.stack([t.action for t in transitions]),
                    np.stack([t.reward for t in transitions]),
                    np.stack([t.next_observation for t in transitions]),
                    np.array([t.termination for t in transitions]),
                    np.array(overs),
                )

    def interrupt(self, *others: ReplayBuffer) -> None:
        """Reset all environments from outside."""
        for store in (self.replay_buffer, *others):
            store.end_episodes()
        for stream in self.env_indices:
            if stream.episodes[-1]:
                stream.reset()

    def held(self, stream: Stream) -> list[tuple[int, int]]:
        """
        Episode and position of each transition that the store must still hold, oldest first: as many of the newest as
        fit, if each transition takes one row and each episode one more for its last state.
        """
        positions = [(e, i) for e, episode in enumerate(stream.episodes) for i in range(len(episode))]
        kept: list[tuple[int, int]] = []
        for position in reversed(positions):
            n_episodes = len({e for e, _ in kept} | {position[0]})
            if len(kept) + 1 + n_episodes > self.n_rows:
                break
            kept.insert(0, position)
        return kept

    def all_held(self) -> list[tuple[int, int, int]]:
        return [(stream.number, *position) for stream in self.env_indices for position in self.held(stream)]

    def locate(self, env_indices: np.ndarray, rows: np.ndarray) -> list[tuple[int, int, int]]:
        """Stream, episode and position of the transitions that start in the given rows of the store."""
        index = {
            transition.observation.tobytes(): (stream.number, e, i)
            for stream in self.env_indices
            for e, episode in enumerate(stream.episodes)
            for i, transition in enumerate(episode)
        }
        return [index[state.tobytes()] for state in self.replay_buffer.observations[env_indices, rows]]

    def check_windows(self, env_indices: np.ndarray, rows: np.ndarray, horizon: int) -> None:
        segments = self.replay_buffer.segments(env_indices, rows, horizon).map(lambda tensor: tensor.numpy())
        assert segments.observations.shape == (len(rows), horizon + 1, OBSERVATION_DIM)
        assert segments.actions.shape == (len(rows), horizon, ACTION_DIM)
        assert segments.rewards.shape == segments.terminations.shape == segments.mask.shape == (len(rows), horizon)
        for number, (stream, e, i) in enumerate(self.locate(env_indices, rows)):
            real = self.env_indices[stream].episodes[e][i : i + horizon]
            n_padded = horizon - len(real)
            padded = real + [real[-1]] * n_padded
            states = [real[0].observation, *(t.next_observation for t in padded)]
            assert np.array_equal(segments.observations[number], np.stack(states))
            assert np.array_equal(segments.actions[number], np.stack([t.action for t in padded]))
            assert np.array_equal(segments.rewards[number], np.stack([t.reward for t in padded]))
            assert segments.mask[number].tolist() == [True] * len(real) + [False] * n_padded
            assert segments.terminations[number].tolist() == [t.termination for t in real] + [False] * n_padded

    def check(self, horizon: int) -> None:
        """Everything that the store holds, from each start, is what the lists hold."""
        env_indices, rows = self.replay_buffer.recent_transitions(self.n_rows * len(self.env_indices))
        assert len(self.replay_buffer) == len(rows)
        assert self.locate(env_indices, rows) == self.all_held()
        self.check_windows(env_indices, rows, horizon)


def saved(store: ReplayBuffer) -> bytes:
    file = io.BytesIO()
    store.save(file)
    return file.getvalue()


def contents(store: ReplayBuffer) -> list[np.ndarray]:
    starts = store.recent_transitions(store.n_rows * store.n_envs)
    segments = store.segments(*starts, horizon=4)
    return [*starts, segments.observations, segments.actions, segments.rewards, segments.terminations, segments.mask]


def assert_same_contents(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(4, 60),
    n_envs=st.integers(1, 4),
    max_length=st.sampled_from([1, 2, 5, 30]),
    horizon=st.integers(1, 12),
    stretches=st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.0, 0.1])), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_store_holds_what_plain_lists_of_episodes_hold(
    n_rows: int, n_envs: int, max_length: int, horizon: int, stretches: list[tuple[int, float]], seed: int
) -> None:
    recorder = SyntheticRecorder(n_rows, n_envs, seed, max_length)
    for n_steps, interruption_probability in stretches:
        recorder.run(n_steps, interruption_probability)
        recorder.check(horizon)
        starts = recorder.replay_buffer.sample_transitions(50, recorder.rng)
        assert set(recorder.locate(*starts)) <= set(recorder.all_held())
        recorder.check_windows(*starts, horizon)


def test_store_is_right_after_each_single_step() -> None:
    recorder = SyntheticRecorder(n_rows=7, n_envs=2, max_length=4)
    for _ in range(60):
        recorder.run(1, interruption_probability=0.1)
        recorder.check(horizon=5)


def test_last_state_of_an_episode_is_the_terminal_one_and_not_that_of_the_reset() -> None:
    store = ReplayBuffer(10, 1, 1, 1)
    one, no = np.ones(1), np.zeros(1)
    # Two episodes: states 0, 1, 2, then, after a reset, 10, 11
    for state, following, over in ((0, 1, no), (1, 2, one), (10, 11, no)):
        store.add(np.array([[state]]), np.array([[0]]), no, np.array([[following]]), over > 0, over > 0)
    segments = store.segments(*store.recent_transitions(10), horizon=3)
    assert segments.observations[..., 0].tolist() == [[0, 1, 2, 2], [1, 2, 2, 2], [10, 11, 11, 11]]
    assert segments.mask.tolist() == [[True, True, False], [True, False, False], [True, False, False]]
    assert segments.terminations.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_time_limit_ends_the_window_but_is_no_termination() -> None:
    store = ReplayBuffer(10, 1, 1, 1)
    no = np.zeros(1, dtype=bool)
    for state, over in ((0, no), (1, ~no), (10, no), (11, no)):
        store.add(np.array([[state]]), np.array([[0]]), np.zeros(1), np.array([[state + 1]]), no, over)
    segments = store.segments(np.array([0]), np.array([0]), horizon=4)
    assert segments.mask.tolist() == [[True, True, False, False]]
    assert not segments.terminations.any()


def test_external_reset_separates_windows() -> None:
    recorder = SyntheticRecorder(n_rows=50, max_length=1000)
    recorder.run(5)
    recorder.interrupt()
    recorder.run(5)
    recorder.check(horizon=8)
    env_indices, rows = recorder.replay_buffer.recent_transitions(50)
    assert recorder.replay_buffer.segments(env_indices, rows, 8).mask.sum(1).tolist() == [5, 4, 3, 2, 1, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("last", [13, 14], ids=["within an episode", "at its end"])
def test_an_interrupt_at_any_moment_leaves_a_store_that_is_right_after_an_external_reset(last: int) -> None:
    """Ctrl-C can come between any two lines of :meth:`add`, with a ring that wraps around."""
    never, always = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)

    def add(store: ReplayBuffer, number: int) -> None:
        state, over = np.array([[float(number)]], dtype=np.float32), always if number % 5 == 4 else never
        store.add(state, state, state[:, 0], state + 1, over, over)

    def interrupted_add(store: ReplayBuffer, number: int, line: int) -> bool:
        lines = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if "replay_buffer" not in frame.f_code.co_filename:
                return None
            lines += event == "line"
            if lines > line:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            add(store, number)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line, was_interrupted = 0, True
    while was_interrupted:
        store = ReplayBuffer(8, 1, 1, 1)
        for number in range(last):
            add(store, number)
        was_interrupted = interrupted_add(store, last, line)
        store.end_episodes()
        for number in range(20, 23):
            add(store, number)
        starts = store.recent_transitions(100)
        states = store.segments(*starts, horizon=1).observations[..., 0]
        assert th.equal(states[:, 1], states[:, 0] + 1)
        assert len(store) == len(starts[0]) == store.is_transition.sum() >= 4
        assert store.terminations[store.terminal_indices()].all()
        assert len(store.terminal_indices()[0]) == (store.terminations & store.is_transition).sum()
        line += 1
    assert line > 10


@pytest.mark.parametrize("n_steps", range(8, 20))
def test_a_full_store_that_is_loaded_knows_its_terminal_transitions(n_steps: int) -> None:
    store = ReplayBuffer(10, 1, 1, 1)

    def add(number: int) -> None:
        state, over = np.array([[float(number)]], dtype=np.float32), np.array([number % 3 == 2])
        store.add(state, state, state[:, 0], state + 1, over, over)

    for number in range(n_steps):
        add(number)
    file = io.BytesIO()
    store.save(file)
    file.seek(0)
    store.load(file)
    for number in range(n_steps, n_steps + 20):
        add(number)
        expected = np.flatnonzero((store.terminations & store.is_transition)[0])
        assert sorted(store.terminal_indices()[1]) == expected.tolist()


def test_external_reset_between_episodes_or_before_the_first_step_changes_nothing() -> None:
    recorder = SyntheticRecorder(n_rows=20, n_envs=3, max_length=1)
    twin = ReplayBuffer(60, 3, OBSERVATION_DIM, ACTION_DIM)
    for _ in range(2):
        twin.end_episodes()
    for _ in range(30):
        recorder.run(1, 0.0, twin)
        twin.end_episodes()
        twin.end_episodes()
    assert_same_contents(contents(recorder.replay_buffer), contents(twin))
    recorder.check(horizon=3)


def test_draws_cover_all_transitions_evenly() -> None:
    recorder = SyntheticRecorder(n_rows=20, n_envs=3, max_length=6)
    recorder.run(100, interruption_probability=0.05)
    held = recorder.all_held()
    drawn = recorder.locate(*recorder.replay_buffer.sample_transitions(400 * len(held), np.random.default_rng(0)))
    counts = [drawn.count(position) for position in held]
    assert sum(counts) == len(drawn)
    # Each count is binomial with a mean of 400 and a deviation of 20
    assert min(counts) > 300
    assert max(counts) < 500


@pytest.mark.parametrize("n_starts", [0, 1, 7])
def test_number_of_draws_is_as_asked(n_starts: int) -> None:
    recorder = SyntheticRecorder(n_rows=20, n_envs=2, max_length=3)
    recorder.run(3)
    env_indices, rows = recorder.replay_buffer.sample_transitions(n_starts, np.random.default_rng(0))
    assert env_indices.shape == rows.shape == (n_starts,)


def test_draws_repeat_with_the_seed_and_leave_the_global_generator_alone() -> None:
    recorder = SyntheticRecorder(n_rows=20, n_envs=2)
    recorder.run(50)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first, again, other = (recorder.replay_buffer.sample_transitions(30, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], before)


def test_recent_transitions_are_the_newest_transitions_of_each_stream() -> None:
    recorder = SyntheticRecorder(n_rows=30, n_envs=2, max_length=1000)
    for _ in range(10):
        recorder.run(9)
        for n_transitions in (1, 2, 8, 9, 40):
            n_each = max(n_transitions // 2, 1)
            expected = [(s.number, *position) for s in recorder.env_indices for position in recorder.held(s)[-n_each:]]
            assert recorder.locate(*recorder.replay_buffer.recent_transitions(n_transitions)) == expected


@pytest.mark.parametrize("seed", range(10))
def test_recent_transitions_never_reach_further_back_than_asked(seed: int) -> None:
    recorder = SyntheticRecorder(n_rows=40, n_envs=3, seed=seed, max_length=5)
    for _ in range(10):
        recorder.run(7, interruption_probability=0.1)
        for n_transitions in (3, 12, 30):
            located = recorder.locate(*recorder.replay_buffer.recent_transitions(n_transitions))
            for stream in recorder.env_indices:
                own = [position for number, *position in located if number == stream.number]
                newest = [list(position) for position in recorder.held(stream)]
                assert len(own) <= n_transitions // 3
                assert own == newest[len(newest) - len(own) :]


@pytest.mark.parametrize("n_rows", [12, 1000])
def test_transitions_since_an_earlier_position_are_the_transitions_added_since_then(n_rows: int) -> None:
    recorder = SyntheticRecorder(n_rows, n_envs=3, max_length=5)
    marks = []
    for _ in range(10):
        marks.append((recorder.replay_buffer.position.copy(), [sum(map(len, s.episodes)) for s in recorder.env_indices]))
        recorder.run(7, interruption_probability=0.1)
        for position, counts in marks:
            expected = []
            for stream, count in zip(recorder.env_indices, counts, strict=True):
                n_new = sum(map(len, stream.episodes)) - count
                expected += [(stream.number, *p) for p in recorder.held(stream)[-n_new:]]
            assert recorder.locate(*recorder.replay_buffer.transitions_since(position)) == expected
    assert len(recorder.replay_buffer.transitions_since(recorder.replay_buffer.position)[0]) == 0


def test_recent_episodes_are_split_at_their_ends_and_tell_whether_they_were_cut_off() -> None:
    recorder = SyntheticRecorder(n_rows=40, n_envs=3, max_length=6)
    for _ in range(10):
        recorder.run(9, interruption_probability=0.1)
        expected = []
        for (number, e), group in itertools.groupby(recorder.all_held(), key=lambda position: position[:2]):
            episodes = recorder.env_indices[number].episodes
            rewards = [float(episodes[e][i].reward) for *_, i in group]
            expected.append((rewards, not episodes[e][-1].termination and e < len(episodes) - 1))
        assert [(rewards.tolist(), cut_off) for rewards, cut_off in recorder.replay_buffer.recent_episodes(120)] == expected


def test_clear_forgets_everything() -> None:
    recorder = SyntheticRecorder(n_rows=20, n_envs=2)
    recorder.run(50)
    recorder.replay_buffer.clear()
    assert len(recorder.replay_buffer) == 0
    fresh = SyntheticRecorder(n_rows=20, n_envs=2, seed=1)
    fresh.store = recorder.replay_buffer
    fresh.run(50)
    fresh.check(horizon=4)


def test_data_of_any_type_is_kept_in_single_precision() -> None:
    store = ReplayBuffer(4, 1, 1, 1)
    flag = np.zeros(1, dtype=bool)
    store.add(np.array([[0.1]]), np.array([[3]]), np.array([0.1]), np.array([[7]]), flag, flag)
    segments = store.segments(*store.recent_transitions(4), horizon=1)
    assert segments.observations.dtype == segments.actions.dtype == segments.rewards.dtype == th.float32
    assert segments.terminations.dtype == segments.mask.dtype == th.bool
    assert segments.observations[0, :, 0].tolist() == [np.float32(0.1), 7]


def test_changing_a_window_does_not_change_the_store() -> None:
    recorder = SyntheticRecorder(n_rows=20)
    recorder.run(10)
    starts = recorder.replay_buffer.recent_transitions(20)
    segments = recorder.replay_buffer.segments(*starts, horizon=3)
    for tensor in (segments.observations, segments.actions, segments.rewards, segments.terminations):
        tensor.zero_()
    recorder.check(horizon=3)


# The source of training data


def test_training_windows_are_drawn_from_the_store() -> None:
    recorder = SyntheticRecorder(n_rows=40, n_envs=2, max_length=6)
    recorder.run(60)
    source = ReplaySegmentSource(recorder.replay_buffer, 4, 80, np.random.default_rng(0))
    segments = source.segments(2000)
    assert len(segments) == 2000
    held = {recorder.env_indices[s].episodes[e][i].observation.tobytes() for s, e, i in recorder.all_held()}
    assert {state.tobytes() for state in segments.observations[:, 0].numpy()} == held
    assert segments.mask.shape == (2000, 4)


def test_terminal_transitions_of_the_training_data_are_all_those_that_are_held() -> None:
    recorder = SyntheticRecorder(n_rows=40, n_envs=2, max_length=6)
    recorder.run(60)
    held = [recorder.env_indices[s].episodes[e][i] for s, e, i in recorder.all_held()]
    terminal = {t.observation.tobytes(): t for t in held if t.termination}
    source = ReplaySegmentSource(recorder.replay_buffer, 4, 80, np.random.default_rng(0))
    assert source.termination_rate == pytest.approx(len(terminal) / len(held))
    drawn = source.terminal_transitions(200)
    assert drawn.terminations.all()
    assert drawn.mask.shape == (200, 1)
    assert {state.tobytes() for state in drawn.observations[:, 0].numpy()} == set(terminal)
    for state, next_state in drawn.observations.numpy():
        assert np.array_equal(terminal[state.tobytes()].next_observation, next_state)


def test_half_of_the_training_data_is_new_and_terminations_come_at_the_rate_that_is_told() -> None:
    store = ReplayBuffer(2000, 1, 1, 1)
    yes, no = np.ones(1, dtype=bool), np.zeros(1, dtype=bool)
    for step in range(1000):
        # Every tenth transition is terminal, of the newest hundred every second one
        terminal = yes if step % (2 if step >= 900 else 10) == 1 else no
        store.add(np.array([[step]]), np.array([[0]]), np.zeros(1), np.array([[step + 1]]), terminal, terminal)
    n_recent_rows = int(store.position[0]) - int(np.flatnonzero(store.observations[0, :, 0] == 900)[0])
    source = ReplaySegmentSource(store, 1, n_recent_rows, np.random.default_rng(0))
    assert source.termination_rate == pytest.approx(0.5 * 140 / 1000 + 0.5 * 0.5)
    n_drawn, error = 20_000, 5 * 0.5 / np.sqrt(20_000)
    segments, terminals = source.segments(n_drawn), source.terminal_transitions(n_drawn)
    assert (segments.observations[:, 0, 0] >= 900).float().mean().item() == pytest.approx(0.5 + 0.5 * 0.1, abs=error)
    assert segments.terminations.float().mean().item() == pytest.approx(source.termination_rate, abs=error)
    # Terminal transitions are drawn as the terminal ones among the segments are
    for drawn in (terminals.observations[:, 0, 0], segments.observations[segments.terminations[:, 0], 0, 0]):
        share = (0.5 * 50 / 1000 + 0.5 * 0.5) / source.termination_rate
        assert (drawn >= 900).float().mean().item() == pytest.approx(share, abs=2 * error)


def test_overwritten_terminations_are_not_counted() -> None:
    """The row of a termination that was overwritten by the last state of an episode holds no transition any more."""
    store = ReplayBuffer(4, 1, 1, 1)
    yes, no = np.ones(1, dtype=bool), np.zeros(1, dtype=bool)
    for step in range(20):
        # Episodes of one transition, of which only the first four end in a terminal state
        termination = yes if step < 4 else no
        store.add(np.array([[step]]), np.array([[0]]), np.zeros(1), np.array([[step]]), termination, yes)
    assert ReplaySegmentSource(store, 2, 4, np.random.default_rng(0)).termination_rate == 0
    assert len(store.terminal_indices()[0]) == 0


# Files


@pytest.mark.parametrize("n_steps", [0, 3, 200])
def test_saved_and_loaded_store_is_the_same_and_goes_on_alike(n_steps: int) -> None:
    recorder = SyntheticRecorder(n_rows=30, n_envs=2, max_length=8)
    recorder.run(n_steps, interruption_probability=0.05)
    other = SyntheticRecorder(n_rows=30, n_envs=2, seed=1)
    other.run(70)
    twin = other.replay_buffer
    twin.load(io.BytesIO(saved(recorder.replay_buffer)))
    assert len(twin) == len(recorder.replay_buffer)
    if n_steps:
        assert_same_contents(contents(recorder.replay_buffer), contents(twin))
        draws = [store.sample_transitions(20, np.random.default_rng(0)) for store in (recorder.replay_buffer, twin)]
        assert np.array_equal(*draws)
    recorder.run(100, 0.05, twin)
    assert_same_contents(contents(recorder.replay_buffer), contents(twin))
    recorder.check(horizon=4)


def test_memory_is_flat_over_several_overwrites_of_a_million_transitions() -> None:
    n_envs, n_rows = 500, 2000
    floats_per_row = OBSERVATION_DIM + ACTION_DIM + 1
    rng = np.random.default_rng(0)
    tracemalloc.start()
    store = ReplayBuffer(n_rows * n_envs, n_envs, OBSERVATION_DIM, ACTION_DIM)
    states = rng.normal(size=(n_envs, OBSERVATION_DIM)).astype(np.float32)
    actions, rewards = states[:, :ACTION_DIM], states[:, 0]
    held = []
    for step in range(4 * n_rows):
        ends = rng.random(n_envs) < 0.01
        store.add(states, actions, rewards, states, ends, ends)
        if (step + 1) % n_rows == 0:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Each episode costs a row for its last state
    assert 0.98 * n_rows * n_envs < len(store) < n_rows * n_envs
    assert max(held) - min(held) < 0.01 * held[0]
    # Besides the floats: two flags per row, and the list of terminal transitions
    assert held[-1] < n_rows * n_envs * (4 * floats_per_row + 2) * 1.05


def test_saved_file_holds_plain_arrays_only() -> None:
    recorder = SyntheticRecorder(n_rows=30, n_envs=2)
    recorder.run(10)
    with np.load(io.BytesIO(saved(recorder.replay_buffer)), allow_pickle=False) as content:
        assert all(content[name].dtype != object for name in content.files)


def test_saved_file_is_no_larger_than_its_content() -> None:
    recorder = SyntheticRecorder(n_rows=100_000)
    recorder.run(10)
    assert len(saved(recorder.replay_buffer)) < 10_000


def altered(content: bytes, **changes: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A valid file whose arrays of the given names were changed, or left out where nothing is returned."""
    with np.load(io.BytesIO(content)) as arrays:
        new = {name: changes.get(name, lambda array: array)(arrays[name]) for name in arrays.files}
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in new.items() if array is not None})
    return file.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def recorder() -> SyntheticRecorder:
    recorder = SyntheticRecorder(n_rows=30, n_envs=2, max_length=8)
    recorder.run(100)
    return recorder


def assert_refused(recorder: SyntheticRecorder, content: bytes, message: str | None = None) -> None:
    before = contents(recorder.replay_buffer)
    with pytest.raises(ValueError, match=message):
        recorder.replay_buffer.load(io.BytesIO(content))
    assert_same_contents(contents(recorder.replay_buffer), before)
    recorder.run(20)
    recorder.check(horizon=4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999])
def test_truncated_file_is_refused_and_the_content_kept(recorder: SyntheticRecorder, share: float) -> None:
    content = saved(recorder.replay_buffer)
    assert_refused(recorder, content[: int(share * len(content))])


@pytest.mark.parametrize(
    "content",
    [
        b"not an archive",
        bytes(range(256)) * 10,
        pickle.dumps({"observations": [1, 2, 3]}),
        as_npy(np.zeros(3)),
        as_npy(np.array([{}, None])),
        as_npz(weights=np.zeros(3)),
        as_npz(observations=np.array([{}, None])),
    ],
    ids=["text", "bytes", "pickle", "npy", "npy with objects", "npz", "npz with objects"],
)
def test_foreign_file_is_refused_and_the_content_kept(recorder: SyntheticRecorder, content: bytes) -> None:
    assert_refused(recorder, content)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((60, 3, OBSERVATION_DIM, ACTION_DIM), "environments"),
        ((62, 2, OBSERVATION_DIM, ACTION_DIM), "buffer_size"),
        ((60, 2, OBSERVATION_DIM + 1, ACTION_DIM), "observation dimensions"),
        ((60, 2, OBSERVATION_DIM, ACTION_DIM + 1), "action dimensions"),
    ],
)
def test_file_of_a_store_of_another_shape_is_refused_by_name(
    recorder: SyntheticRecorder, shape: tuple[int, int, int, int], message: str
) -> None:
    assert_refused(recorder, saved(ReplayBuffer(*shape)), message)


def test_file_of_a_newer_format_is_refused(recorder: SyntheticRecorder) -> None:
    for rewards in (lambda array: array, lambda array: None):
        # Whatever else such a file holds
        content = altered(saved(recorder.replay_buffer), format_version=lambda version: version + 1, rewards=rewards)
        assert_refused(recorder, content, "newer than")


@pytest.mark.parametrize("name", [*ARRAYS, "position"])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: None,
        lambda array: array[..., :-1],
        lambda array: array[:-1],
        lambda array: array.reshape(-1)[0],
        lambda array: np.repeat(array, 2, axis=-1),
        lambda array: np.repeat(array, 20, axis=min(1, array.ndim - 1)),
        lambda array: np.full(array.shape, "text"),
    ],
    ids=["missing", "short", "few", "scalar", "wide", "long", "text"],
)
def test_file_with_an_array_that_does_not_fit_is_refused_and_the_content_kept(
    recorder: SyntheticRecorder, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert_refused(recorder, altered(saved(recorder.replay_buffer), **{name: change}))


@pytest.mark.parametrize("name", ["n_rows", "format_version"])
@pytest.mark.parametrize(
    "change",
    [lambda array: None, lambda array: np.array([array] * 3), lambda array: np.array("a"), lambda array: 0.5 * array],
    ids=["missing", "list", "text", "fraction"],
)
def test_file_with_a_number_that_does_not_fit_is_refused_and_the_content_kept(
    recorder: SyntheticRecorder, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert_refused(recorder, altered(saved(recorder.replay_buffer), **{name: change}))


def test_file_with_flipped_bits_is_refused_or_loads_what_was_saved() -> None:
    recorder = SyntheticRecorder(n_rows=8, max_length=4)
    recorder.run(20)
    content, before = saved(recorder.replay_buffer), contents(recorder.replay_buffer)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), size=300, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            recorder.replay_buffer.load(io.BytesIO(damaged))
        except ValueError:
            pass
        # Some bits of an archive, such as the time of writing, mean nothing
        assert_same_contents(contents(recorder.replay_buffer), before)


def test_a_pickle_holds_the_used_rows_only() -> None:
    rng = np.random.default_rng(0)
    store = ReplayBuffer(100_000, 2, OBSERVATION_DIM, ACTION_DIM)
    for step in range(50):
        states = rng.normal(size=(2, 2, OBSERVATION_DIM)).astype(np.float32)
        ends = np.full(2, step % 10 == 9)
        store.add(states[0], rng.normal(size=(2, ACTION_DIM)), rng.normal(size=2), states[1], ends, ends)
    content = pickle.dumps(store)
    assert len(content) < 10_000
    copied = pickle.loads(content)
    for each in (store, copied):
        each.add(states[0], np.ones((2, ACTION_DIM)), np.ones(2), states[1], ends, ends)
    assert len(copied) == len(store) and copied.terminal_indices()[1].tolist() == store.terminal_indices()[1].tolist()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(copied, name), getattr(store, name))

"""The replay buffer holds the same transitions as plain lists of episodes."""

import io
import sys
import tracemalloc
import warnings
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_episodes import ACTION_DIM, OBSERVATION_DIM, SyntheticRecorder, assert_same_contents, contents

from sb3_agd.experience.replay_buffer import ReplayBuffer


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    capacity_per_env=st.integers(4, 60),
    n_envs=st.integers(1, 4),
    max_length=st.sampled_from([1, 2, 5, 30]),
    horizon=st.integers(1, 12),
    stretches=st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.0, 0.1])), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_buffer_holds_the_same_transitions_as_plain_lists(
    capacity_per_env: int, n_envs: int, max_length: int, horizon: int, stretches: list[tuple[int, float]], seed: int
) -> None:
    recorder = SyntheticRecorder(capacity_per_env, n_envs, seed, max_length)
    for n_steps, interruption_probability in stretches:
        recorder.run(n_steps, interruption_probability)
        recorder.check(horizon)
        transitions = recorder.replay_buffer.sample_transitions(50, recorder.rng)
        assert set(recorder.locate(*transitions)) <= set(recorder.all_held())
        recorder.check_segments(*transitions, horizon)


def test_buffer_is_right_after_each_single_step() -> None:
    recorder = SyntheticRecorder(capacity_per_env=7, n_envs=2, max_length=4)
    for _ in range(60):
        recorder.run(1, interruption_probability=0.1)
        recorder.check(horizon=5)


def test_last_state_of_an_episode_is_not_the_first_one_after_the_reset() -> None:
    buffer = ReplayBuffer(10, 1, 1, 1)
    one, no = np.ones(1), np.zeros(1)
    # Two episodes: states 0, 1, 2, then, after a reset, 10, 11
    for state, following, over in ((0, 1, no), (1, 2, one), (10, 11, no)):
        buffer.add(np.array([[state]]), np.array([[0]]), no, np.array([[following]]), over > 0, over > 0)
    segments = buffer.segments(*buffer.recent_transitions(10), horizon=3)
    assert segments.observations[..., 0].tolist() == [[0, 1, 2, 2], [1, 2, 2, 2], [10, 11, 11, 11]]
    assert segments.mask.tolist() == [[True, True, False], [True, False, False], [True, False, False]]
    assert segments.terminations.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_a_time_limit_ends_a_segment_without_a_termination() -> None:
    buffer = ReplayBuffer(10, 1, 1, 1)
    no = np.zeros(1, dtype=bool)
    for state, over in ((0, no), (1, ~no), (10, no), (11, no)):
        buffer.add(np.array([[state]]), np.array([[0]]), np.zeros(1), np.array([[state + 1]]), no, over)
    segments = buffer.segments(np.array([0]), np.array([0]), horizon=4)
    assert segments.mask.tolist() == [[True, True, False, False]]
    assert not segments.terminations.any()


def test_no_segment_crosses_a_reset_from_outside() -> None:
    recorder = SyntheticRecorder(capacity_per_env=50, max_length=1000)
    recorder.run(5)
    recorder.interrupt()
    recorder.run(5)
    recorder.check(horizon=8)
    env_indices, indices = recorder.replay_buffer.recent_transitions(50)
    assert recorder.replay_buffer.segments(env_indices, indices, 8).mask.sum(1).tolist() == [5, 4, 3, 2, 1, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("last", [2, 13, 14], ids=["while memory grows", "within an episode", "at its end"])
def test_an_interrupt_at_any_moment_leaves_a_right_buffer_after_the_episodes_are_closed(last: int) -> None:
    """Ctrl-C can come between any two lines of :meth:`add`, with a ring that wraps around."""
    never, always = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)

    def add(buffer: ReplayBuffer, number: int) -> None:
        state, over = np.array([[float(number)]], dtype=np.float32), always if number % 5 == 4 else never
        buffer.add(state, state, state[:, 0], state + 1, over, over)

    def interrupted_add(buffer: ReplayBuffer, number: int, line: int) -> bool:
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
            add(buffer, number)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line, was_interrupted = 0, True
    while was_interrupted:
        buffer = ReplayBuffer(8, 1, 1, 1)
        for number in range(last):
            add(buffer, number)
        was_interrupted = interrupted_add(buffer, last, line)
        buffer.close_episodes()
        for number in range(20, 23):
            add(buffer, number)
        transitions = buffer.recent_transitions(100)
        states = buffer.segments(*transitions, horizon=1).observations[..., 0]
        assert th.equal(states[:, 1], states[:, 0] + 1)
        assert len(buffer) == len(transitions[0]) == buffer.is_transition.sum() >= 4
        assert buffer.terminations[buffer.terminal_indices()].all()
        assert len(buffer.terminal_indices()[0]) == (buffer.terminations & buffer.is_transition).sum()
        line += 1
    assert line > 10


@pytest.mark.parametrize("n_steps", range(8, 20))
def test_terminal_indices_of_a_full_buffer_survive_loading(n_steps: int) -> None:
    buffer = ReplayBuffer(10, 1, 1, 1)

    def add(number: int) -> None:
        state, over = np.array([[float(number)]], dtype=np.float32), np.array([number % 3 == 2])
        buffer.add(state, state, state[:, 0], state + 1, over, over)

    for number in range(n_steps):
        add(number)
    file = io.BytesIO()
    buffer.save(file)
    file.seek(0)
    buffer.load(file)
    for number in range(n_steps, n_steps + 20):
        add(number)
        expected = np.flatnonzero((buffer.terminations & buffer.is_transition)[0])
        assert sorted(buffer.terminal_indices()[1]) == expected.tolist()


def test_closing_episodes_changes_nothing_between_episodes_or_before_the_first_step() -> None:
    recorder = SyntheticRecorder(capacity_per_env=20, n_envs=3, max_length=1)
    twin = ReplayBuffer(60, 3, OBSERVATION_DIM, ACTION_DIM)
    for _ in range(2):
        twin.close_episodes()
    for _ in range(30):
        recorder.run(1, 0.0, twin)
        twin.close_episodes()
        twin.close_episodes()
    assert_same_contents(contents(recorder.replay_buffer), contents(twin))
    recorder.check(horizon=3)


def test_draws_are_uniform_over_all_transitions() -> None:
    recorder = SyntheticRecorder(capacity_per_env=20, n_envs=3, max_length=6)
    recorder.run(100, interruption_probability=0.05)
    held = recorder.all_held()
    drawn = recorder.locate(*recorder.replay_buffer.sample_transitions(400 * len(held), np.random.default_rng(0)))
    counts = [drawn.count(position) for position in held]
    assert sum(counts) == len(drawn)
    # Each count is binomial with a mean of 400 and a deviation of 20
    assert min(counts) > 300
    assert max(counts) < 500


@pytest.mark.parametrize("n_transitions", [0, 1, 7])
def test_sample_transitions_returns_the_requested_number(n_transitions: int) -> None:
    recorder = SyntheticRecorder(capacity_per_env=20, n_envs=2, max_length=3)
    recorder.run(3)
    env_indices, indices = recorder.replay_buffer.sample_transitions(n_transitions, np.random.default_rng(0))
    assert env_indices.shape == indices.shape == (n_transitions,)


def test_draws_depend_on_the_given_generator_only() -> None:
    recorder = SyntheticRecorder(capacity_per_env=20, n_envs=2)
    recorder.run(50)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first, again, other = (recorder.replay_buffer.sample_transitions(30, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], before)


def test_recent_transitions_are_the_newest_ones_of_each_environment() -> None:
    recorder = SyntheticRecorder(capacity_per_env=30, n_envs=2, max_length=1000)
    for _ in range(10):
        recorder.run(9)
        for n_transitions in (1, 2, 8, 9, 40):
            n_each = max(n_transitions // 2, 1)
            expected = [(s.number, *position) for s in recorder.envs for position in recorder.held(s)[-n_each:]]
            assert recorder.locate(*recorder.replay_buffer.recent_transitions(n_transitions)) == expected


@pytest.mark.parametrize("seed", range(10))
def test_recent_transitions_look_at_no_more_indices_than_requested(seed: int) -> None:
    recorder = SyntheticRecorder(capacity_per_env=40, n_envs=3, seed=seed, max_length=5)
    for _ in range(10):
        recorder.run(7, interruption_probability=0.1)
        for n_transitions in (3, 12, 30):
            located = recorder.locate(*recorder.replay_buffer.recent_transitions(n_transitions))
            for env in recorder.envs:
                own = [position for number, *position in located if number == env.number]
                newest = [list(position) for position in recorder.held(env)]
                assert len(own) <= n_transitions // 3
                assert own == newest[len(newest) - len(own) :]


@pytest.mark.parametrize("capacity_per_env", [12, 1000])
def test_transitions_since_a_position_are_those_added_after_it(capacity_per_env: int) -> None:
    recorder = SyntheticRecorder(capacity_per_env, n_envs=3, max_length=5)
    marks = []
    for _ in range(10):
        marks.append((recorder.replay_buffer.position.copy(), [sum(map(len, s.episodes)) for s in recorder.envs]))
        recorder.run(7, interruption_probability=0.1)
        for position, counts in marks:
            expected = []
            for env, count in zip(recorder.envs, counts, strict=True):
                n_new = sum(map(len, env.episodes)) - count
                expected += [(env.number, *p) for p in recorder.held(env)[-n_new:]]
            assert recorder.locate(*recorder.replay_buffer.transitions_since(position)) == expected
    assert len(recorder.replay_buffer.transitions_since(recorder.replay_buffer.position)[0]) == 0


def test_clear_removes_everything() -> None:
    recorder = SyntheticRecorder(capacity_per_env=20, n_envs=2)
    recorder.run(50)
    recorder.replay_buffer.clear()
    assert len(recorder.replay_buffer) == 0
    fresh = SyntheticRecorder(capacity_per_env=20, n_envs=2, seed=1)
    fresh.replay_buffer = recorder.replay_buffer
    fresh.run(50)
    fresh.check(horizon=4)


def test_data_of_any_type_are_stored_in_single_precision() -> None:
    buffer = ReplayBuffer(4, 1, 1, 1)
    flag = np.zeros(1, dtype=bool)
    buffer.add(np.array([[0.1]]), np.array([[3]]), np.array([0.1]), np.array([[7]]), flag, flag)
    segments = buffer.segments(*buffer.recent_transitions(4), horizon=1)
    assert segments.observations.dtype == segments.actions.dtype == segments.rewards.dtype == th.float32
    assert segments.terminations.dtype == segments.mask.dtype == th.bool
    assert segments.observations[0, :, 0].tolist() == [np.float32(0.1), 7]


def test_segments_are_copies() -> None:
    recorder = SyntheticRecorder(capacity_per_env=20)
    recorder.run(10)
    transitions = recorder.replay_buffer.recent_transitions(20)
    segments = recorder.replay_buffer.segments(*transitions, horizon=3)
    for tensor in (segments.observations, segments.actions, segments.rewards, segments.terminations):
        tensor.zero_()
    recorder.check(horizon=3)


def test_memory_stays_constant_while_a_million_transitions_are_overwritten() -> None:
    n_envs, capacity_per_env = 500, 2000
    floats_per_row = OBSERVATION_DIM + ACTION_DIM + 1
    rng = np.random.default_rng(0)
    tracemalloc.start()
    buffer = ReplayBuffer(capacity_per_env * n_envs, n_envs, OBSERVATION_DIM, ACTION_DIM)
    states = rng.normal(size=(n_envs, OBSERVATION_DIM)).astype(np.float32)
    actions, rewards = states[:, :ACTION_DIM], states[:, 0]
    held = []
    for step in range(4 * capacity_per_env):
        ends = rng.random(n_envs) < 0.01
        buffer.add(states, actions, rewards, states, ends, ends)
        if (step + 1) % capacity_per_env == 0:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Each episode costs a row for its last state
    assert 0.98 * capacity_per_env * n_envs < len(buffer) < capacity_per_env * n_envs
    assert max(held) - min(held) < 0.01 * held[0]
    # Besides the floats: two flags per row, and the list of terminal transitions
    assert held[-1] < capacity_per_env * n_envs * (4 * floats_per_row + 2) * 1.05


def test_memory_grows_with_the_data_up_to_the_capacity() -> None:
    n_envs, observation_dim, capacity_per_env = 2, 1000, 300
    buffer = ReplayBuffer(capacity_per_env * n_envs, n_envs, observation_dim, 1)
    zeros, never = np.zeros((n_envs, 1), dtype=np.float32), np.zeros(n_envs, dtype=bool)
    sizes = []
    for step in range(1, 2 * capacity_per_env):
        states = np.full((n_envs, observation_dim), step, dtype=np.float32)
        buffer.add(states, zeros, zeros[:, 0], states + 1, never, never)
        n_states = min(step + 1, capacity_per_env)
        n_allocated = buffer.observations.shape[1]
        assert n_states <= n_allocated <= min(2 * (n_states + 2), capacity_per_env)
        sizes.append(n_allocated)
    # Few copies, and none once the ring is full
    assert len(set(sizes)) <= 10
    transitions = buffer.recent_transitions(2 * n_envs * capacity_per_env)
    states = buffer.segments(*transitions, horizon=1).observations[..., 0]
    assert len(states) == n_envs * (capacity_per_env - 1)
    assert th.equal(states[:, 1], states[:, 0] + 1)


def test_construction_takes_little_memory_whatever_the_capacity() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = ReplayBuffer(10**9, 1, 10**4, 10)
    assert buffer.observations.nbytes < 10**6


def test_a_warning_names_buffer_size_if_a_full_buffer_cannot_fit_into_memory() -> None:
    with pytest.warns(UserWarning, match="`buffer_size` 1000000000 .* 4000.* GB"):
        ReplayBuffer(10**9, 1, 10**6, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReplayBuffer(1000, 1, 100, 10)

"""Segments that the world model is trained on."""

import numpy as np
import pytest
from synthetic_episodes import SyntheticRecorder

from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.segment_source import ReplaySegmentSource


def test_training_segments_start_at_all_transitions_of_the_buffer() -> None:
    recorder = SyntheticRecorder(capacity_per_env=40, n_envs=2, max_length=6)
    recorder.run(60)
    source = ReplaySegmentSource(recorder.replay_buffer, 4, 80, np.random.default_rng(0))
    segments = source.segments(2000)
    assert len(segments) == 2000
    held = {recorder.envs[s].episodes[e][i].observation.tobytes() for s, e, i in recorder.all_held()}
    assert {state.tobytes() for state in segments.observations[:, 0].numpy()} == held
    assert segments.mask.shape == (2000, 4)


def test_terminal_transitions_are_drawn_from_all_of_the_buffer() -> None:
    recorder = SyntheticRecorder(capacity_per_env=40, n_envs=2, max_length=6)
    recorder.run(60)
    held = [recorder.envs[s].episodes[e][i] for s, e, i in recorder.all_held()]
    terminal = {t.observation.tobytes(): t for t in held if t.termination}
    source = ReplaySegmentSource(recorder.replay_buffer, 4, 80, np.random.default_rng(0))
    assert source.termination_rate == pytest.approx(len(terminal) / len(held))
    drawn = source.terminal_transitions(200)
    assert drawn.terminations.all()
    assert drawn.mask.shape == (200, 1)
    assert {state.tobytes() for state in drawn.observations[:, 0].numpy()} == set(terminal)
    for state, next_state in drawn.observations.numpy():
        assert np.array_equal(terminal[state.tobytes()].next_observation, next_state)


def test_half_of_the_segments_are_recent_and_terminations_come_at_the_stated_rate() -> None:
    buffer = ReplayBuffer(2000, 1, 1, 1)
    yes, no = np.ones(1, dtype=bool), np.zeros(1, dtype=bool)
    for step in range(1000):
        # Every tenth transition is terminal, of the newest hundred every second one
        terminal = yes if step % (2 if step >= 900 else 10) == 1 else no
        buffer.add(np.array([[step]]), np.array([[0]]), np.zeros(1), np.array([[step + 1]]), terminal, terminal)
    n_recent = int(buffer.position[0]) - int(np.flatnonzero(buffer.observations[0, :, 0] == 900)[0])
    source = ReplaySegmentSource(buffer, 1, n_recent, np.random.default_rng(0))
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
    """The index of a termination that the last state of an episode overwrites holds no transition any more."""
    buffer = ReplayBuffer(4, 1, 1, 1)
    yes, no = np.ones(1, dtype=bool), np.zeros(1, dtype=bool)
    for step in range(20):
        # Episodes of one transition, of which only the first four end in a terminal state
        termination = yes if step < 4 else no
        buffer.add(np.array([[step]]), np.array([[0]]), np.zeros(1), np.array([[step]]), termination, yes)
    assert ReplaySegmentSource(buffer, 2, 4, np.random.default_rng(0)).termination_rate == 0
    assert len(buffer.terminal_indices()[0]) == 0

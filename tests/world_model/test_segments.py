"""Segments and their mask."""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th

from sb3_agd.world_model import Segments
from sb3_agd.world_model.segments import mask_after_termination


def test_mask_is_true_up_to_and_including_the_first_termination() -> None:
    terminations = th.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=th.bool)
    expected = th.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=th.bool)
    assert th.equal(mask_after_termination(terminations), expected)
    assert (mask_after_termination(terminations.numpy()) == expected.numpy()).all()


def segments_of(terminations: np.ndarray, mask: np.ndarray | None = None) -> Segments[np.ndarray]:
    """Segments with two observation dimensions and one action dimension, whose numbers are all different."""
    batch, horizon = terminations.shape
    observations = np.arange(batch * (horizon + 1) * 2, dtype=np.float32).reshape(batch, horizon + 1, 2)
    actions, rewards = observations[:, :-1, :1] + 100, observations[:, 1:, 1] + 200
    mask = mask_after_termination(terminations) if mask is None else mask
    return Segments(observations, actions, rewards, terminations, mask)


TERMINATIONS = np.array([[False, False, False], [False, True, False], [True, False, True]])


def test_printed_segments_are_one_line() -> None:
    line = "Segments(3 of horizon 3, 2 ended: observations (3, 4, 2), actions (3, 3, 1))"
    segments = segments_of(TERMINATIONS)
    assert str(segments) == repr(segments) == line
    assert str(segments.map(th.from_numpy)) == line


def test_terminations_that_are_masked_do_not_count_as_ends() -> None:
    mask = np.array([[True, True, True], [True, False, False], [True, True, True]])
    assert "1 ended" in str(segments_of(TERMINATIONS, mask))


def test_segments_are_a_dictionary_of_their_arrays() -> None:
    segments = segments_of(TERMINATIONS)
    arrays = segments.to_dict()
    assert list(arrays) == ["observations", "actions", "rewards", "terminations", "mask"]
    assert all(array is getattr(segments, name) for name, array in arrays.items())
    # Another dictionary each time: to change it changes no segments
    arrays.clear()
    assert len(segments.to_dict()) == 5


@pytest.mark.parametrize("index, length, terminated", [(0, 3, False), (1, 2, True), (2, 1, True), (-1, 1, True)])
@pytest.mark.parametrize("convert", [lambda array: array, th.from_numpy], ids=["numpy", "torch"])
def test_an_episode_is_a_segment_cut_at_its_mask(index: int, length: int, terminated: bool, convert: Callable) -> None:
    segments = segments_of(TERMINATIONS).map(convert)
    observations, actions, rewards, ended = segments.episode(index)
    assert observations.tolist() == segments.observations[index, : length + 1].tolist() and len(observations) == length + 1
    assert actions.tolist() == segments.actions[index, :length].tolist()
    assert rewards.tolist() == segments.rewards[index, :length].tolist()
    assert ended is terminated


def test_an_episode_that_data_cut_off_is_not_terminated() -> None:
    mask = np.array([[True, True, True], [True, False, False], [True, True, True]])
    episode = segments_of(TERMINATIONS, mask).episode(1)
    assert len(episode.actions) == 1 and episode.terminated is False


def test_there_is_no_episode_beyond_the_last_segment() -> None:
    with pytest.raises(IndexError):
        segments_of(TERMINATIONS).episode(3)

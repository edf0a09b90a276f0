"""Containers that travel between the trajectory store, the world model and the policy update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch as th

ArrayT = TypeVar("ArrayT", np.ndarray, th.Tensor)


class Episode(NamedTuple):
    """One segment of ``T`` transitions, with ``T + 1`` observations, and whether it ended in a terminal state."""

    observations: np.ndarray | th.Tensor
    actions: np.ndarray | th.Tensor
    rewards: np.ndarray | th.Tensor
    terminated: bool


@dataclass(frozen=True)
class Segments(Generic[ArrayT]):
    """
    A batch of ``B`` trajectory segments of ``H`` consecutive transitions, real or imagined.

    Nothing after the first termination of a segment, or after the end of the data it was cut from, means anything:
    ``mask`` is ``False`` there.

    :param observations: Visited states, shape (B, H + 1, observation_dim); column 0 is the start state
    :param actions: Actions as the environment receives them, shape (B, H, action_dim)
    :param rewards: Rewards, shape (B, H)
    :param terminations: Whether a transition ended the episode in a terminal state (a time limit does not), shape
        (B, H)
    :param mask: Whether a transition is part of the segment, shape (B, H)
    """

    observations: ArrayT
    actions: ArrayT
    rewards: ArrayT
    terminations: ArrayT
    mask: ArrayT

    def map(self, function: Callable) -> Segments:
        """The segments with a function applied to every array."""
        return Segments(**{name: function(array) for name, array in vars(self).items()})

    def to(self: Segments[th.Tensor], device: th.device) -> Segments[th.Tensor]:
        """The segments on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def to_dict(self) -> dict[str, ArrayT]:
        """The arrays by name, not copied."""
        return dict(vars(self))

    def episode(self, index: int) -> Episode:
        """
        :param index: Number of a segment
        :return: The segment up to its end, in views of the arrays
        """
        length = int(self.mask[index].sum())
        arrays = self.observations[index, : length + 1], self.actions[index, :length], self.rewards[index, :length]
        return Episode(*arrays, bool(self.terminations[index, :length].any()))

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        n_ended = int((self.terminations & self.mask).any(1).sum())
        shapes = f"observations {tuple(self.observations.shape)}, actions {tuple(self.actions.shape)}"
        return f"Segments({len(self)} of horizon {self.rewards.shape[1]}, {n_ended} ended: {shapes})"


class SegmentSource(Protocol):
    """
    Where the world model draws its training data from. ``termination_rate`` is the share of terminal transitions
    among the first ones of the segments that it draws.
    """

    termination_rate: float

    def segments(self, n_segments: int) -> Segments[th.Tensor]:
        """
        :param n_segments: Number of segments
        :return: Segments in raw units
        """

    def terminal_transitions(self, n_transitions: int) -> Segments[th.Tensor]:
        """
        :param n_transitions: Number of transitions
        :return: Segments of horizon 1, drawn evenly from the terminal transitions, of which there must be one at least
        """


def mask_after_termination(terminations: ArrayT) -> ArrayT:
    """
    :param terminations: Boolean, shape (B, H)
    :return: ``True`` up to and including the first termination of each row, shape (B, H)
    """
    return terminations.cumsum(1) - 1 * terminations == 0


def as_tensor(values: th.Tensor | np.ndarray, device: th.device) -> th.Tensor:
    """
    :param values: A tensor, or an array of any type and memory layout
    :param device: Device
    :return: The tensor, or a copy of the array in single precision on the device
    """
    return values if isinstance(values, th.Tensor) else th.from_numpy(np.array(values, dtype=np.float32, order="C")).to(device)

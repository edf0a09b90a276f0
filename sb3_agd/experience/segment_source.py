"""Segments of the replay buffer that the world model is trained on."""

import numpy as np
import torch as th

from sb3_agd.experience.replay_buffer import Indices, ReplayBuffer
from sb3_agd.world_model import Segments

# Share of the world model's training segments that start at one of the newest transitions
RECENT_SHARE = 0.5


class ReplaySegmentSource:
    """
    Training data of the world model: segments of a replay buffer as it is now. Half of them start at its newest
    transitions, half anywhere: the policy is about to act near the newest states, and uniform draws from a large buffer
    would rarely contain them.

    :param replay_buffer: The buffer, with at least one transition
    :param horizon: Number of transitions of a segment
    :param n_recent: Number of newest indices to draw from in particular, over all environments
    :param rng: Random generator
    """

    def __init__(self, replay_buffer: ReplayBuffer, horizon: int, n_recent: int, rng: np.random.Generator):
        self.replay_buffer = replay_buffer
        self.horizon = horizon
        self.rng = rng
        self.recent = replay_buffer.recent_transitions(n_recent)
        self.terminals = replay_buffer.terminal_indices()
        is_terminal = replay_buffer.terminations[self.recent]
        self.recent_terminals = self.recent[0][is_terminal], self.recent[1][is_terminal]
        recent_rate = RECENT_SHARE * is_terminal.mean()
        # Share of terminal transitions among those drawn, and share of recent ones among these
        self.termination_rate = (1 - RECENT_SHARE) * len(self.terminals[0]) / len(replay_buffer) + recent_rate
        self.recent_terminal_share = recent_rate / self.termination_rate if recent_rate > 0 else 0.0

    def segments(self, n_segments: int) -> Segments[th.Tensor]:
        """
        :param n_segments: Number of segments
        :return: Segments, about half of which start at the newest transitions, the others anywhere
        """
        n_recent = self.rng.binomial(n_segments, RECENT_SHARE)
        recent = self._draw(self.recent, n_recent)
        everywhere = self.replay_buffer.sample_transitions(n_segments - n_recent, self.rng)
        return self._segments(recent, everywhere, self.horizon)

    def terminal_transitions(self, n_transitions: int) -> Segments[th.Tensor]:
        """
        :param n_transitions: Number of transitions
        :return: Segments of one terminal transition each, with the same distribution as the terminal transitions among the
            start transitions of :meth:`segments`
        """
        n_recent = self.rng.binomial(n_transitions, self.recent_terminal_share)
        recent = self._draw(self.recent_terminals, n_recent)
        everywhere = self._draw(self.terminals, n_transitions - n_recent)
        return self._segments(recent, everywhere, horizon=1)

    def _draw(self, transitions: Indices, n_drawn: int) -> Indices:
        """
        :param transitions: Environment indices and indices of transitions
        :param n_drawn: Number of draws, with replacement
        :return: Environment indices and indices of those drawn
        """
        env_indices, indices = transitions
        chosen = self.rng.integers(max(len(indices), 1), size=n_drawn)
        return env_indices[chosen], indices[chosen]

    def _segments(self, first: Indices, second: Indices, horizon: int) -> Segments[th.Tensor]:
        """
        :param first: Environment indices and indices of transitions
        :param second: More of them
        :param horizon: Number of transitions of a segment
        :return: Segments that start at all of these
        """
        env_indices, indices = (np.concatenate(both) for both in zip(first, second, strict=True))
        return self.replay_buffer.segments(env_indices, indices, horizon)

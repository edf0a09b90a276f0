"""What imagination starts from."""

import numpy as np
import torch as th

from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.world_model import Segments

# Recent states are those of this many newest rows of the replay buffer: older ones come from older policies
RECENT_ROWS = 20_000
# Where imagination starts from
START_STATES = ("recent", "all")


def real_states(buffer: ReplayBuffer, n_states: int, rng: np.random.Generator, which: str = "recent") -> np.ndarray:
    """
    :param buffer: Real transitions
    :param n_states: Number of states
    :param rng: Source of randomness
    :param which: ``"recent"`` or ``"all"``
    :return: States before transitions, drawn with replacement, shape (n_states, observation_size)
    """
    if which == "all":
        return buffer.observations[buffer.sample_transitions(n_states, rng)]
    # Two of each environment at least: all of their episodes may just have ended
    env_indices, indices = buffer.recent_transitions(max(RECENT_ROWS, 2 * buffer.n_envs))
    chosen = rng.integers(len(indices), size=n_states)
    return buffer.observations[env_indices[chosen], indices[chosen]]


def states_along(segments: Segments[th.Tensor], generator: th.Generator) -> th.Tensor:
    """
    :param segments: Segments
    :param generator: Source of randomness
    :return: One state of each that is not terminal, any with the same probability, shape (B, observation_dim)
    """
    last = (segments.mask & ~segments.terminations).sum(1)
    uniform = th.rand(len(segments), generator=generator, device=generator.device)
    # The product can be rounded up
    steps = th.minimum((uniform * (last + 1)).long(), last)
    return segments.observations[th.arange(len(segments), device=steps.device), steps]

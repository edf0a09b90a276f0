"""States that imagination starts from."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.space_codecs import SpaceCodec
from sb3_agd.world_model import Segments

# Imagination starts from states among this many newest rows of the replay buffer: older ones come from older policies
RECENT_ROWS = 20_000


def recent_states(buffer: ReplayBuffer, n_states: int, rng: np.random.Generator) -> np.ndarray:
    """
    :param buffer: Real transitions
    :param n_states: Number of states
    :param rng: Source of randomness
    :return: States before recent transitions, drawn with replacement, shape (n_states, observation_size)
    """
    env_indices, indices = buffer.recent_transitions(RECENT_ROWS)
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


def encoded_observations(codec: SpaceCodec, space: spaces.Space, observations: np.ndarray) -> np.ndarray:
    """
    :param codec: Codec of the observation space
    :param space: The observation space
    :param observations: As the environment gives them, or flattened, shape (B, observation_dim)
    :return: Observation vectors, shape (B, observation_size)
    :raises ValueError: If their shape or a value is invalid
    """
    flat_shape = (int(np.prod(codec.shape)),)
    shapes = {flat_shape, codec.shape} | ({()} if codec.shape == (1,) else set())
    if observations.ndim == 0 or observations.shape[1:] not in shapes:
        raise ValueError(f"`observations` must have shape (B, {flat_shape[0]}), not {observations.shape}")
    if len(observations) == 0:
        raise ValueError("`observations` must hold at least one start state")
    if not np.all(np.isfinite(observations)):
        raise ValueError("`observations` must be finite, there is NaN or infinity in them")
    try:
        return codec.encode(observations)
    except ValueError as error:
        raise ValueError(f"`observations` must be of {space}. {error}") from None

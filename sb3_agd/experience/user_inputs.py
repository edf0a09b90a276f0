"""Observations and actions that a user gives, as vectors."""

import numpy as np
from gymnasium import spaces

from sb3_agd.experience.space_codecs import SpaceCodec


def batched(codec: SpaceCodec, observations: np.ndarray) -> np.ndarray:
    """
    :param codec: Codec of the observation space
    :param observations: One observation or a batch, of any memory layout
    :return: A batch, contiguous
    """
    # One number could be a batch of discrete observations, but not a scalar
    is_single = observations.ndim == 0 or (observations.shape == codec.shape and codec.shape != (1,))
    return np.ascontiguousarray(observations[None] if is_single else observations)


def element_shapes(codec: SpaceCodec) -> set[tuple[int, ...]]:
    """
    :param codec: Codec of a space
    :return: Shapes that one element may have: its own, flattened, and a scalar if it is one number
    """
    return {(int(np.prod(codec.shape)),), codec.shape} | ({()} if codec.shape == (1,) else set())


def encoded_observations(codec: SpaceCodec, space: spaces.Space, observations: np.ndarray) -> np.ndarray:
    """
    :param codec: Codec of the observation space
    :param space: The observation space
    :param observations: As the environment gives them, or flattened, shape (B, observation_dim)
    :return: Observation vectors, shape (B, observation_size)
    :raises ValueError: If their shape or a value is invalid
    """
    if observations.shape[1:] not in element_shapes(codec):
        raise ValueError(f"`observations` must have shape (B, {int(np.prod(codec.shape))}), not {observations.shape}")
    if len(observations) == 0:
        raise ValueError("`observations` must hold at least one start state")
    return checked_vectors("observations", codec, space, observations)


def encoded_actions(codec: SpaceCodec, space: spaces.Space, actions: np.ndarray, n_segments: int) -> np.ndarray:
    """
    :param codec: Codec of the action space
    :param space: The action space
    :param actions: As the environment receives them, or flattened, shape (B, H, action_dim)
    :param n_segments: Number of start states, B
    :return: Action vectors, shape (B, H, action_size)
    :raises ValueError: If their shape or a value is invalid
    """
    shape = actions.shape
    if len(shape) < 2 or shape[0] != n_segments or shape[1] == 0 or shape[2:] not in element_shapes(codec):
        raise ValueError(f"`actions` must have shape ({n_segments}, horizon, {int(np.prod(codec.shape))}), not {shape}")
    vectors = checked_vectors("actions", codec, space, np.ascontiguousarray(actions).reshape(-1, *codec.shape))
    return vectors.reshape(n_segments, shape[1], -1)


def checked_vectors(name: str, codec: SpaceCodec, space: spaces.Space, elements: np.ndarray) -> np.ndarray:
    """
    :param name: Name of the argument
    :param codec: Codec of the space
    :param space: The space
    :param elements: Elements of the space, N of them
    :return: Vectors, shape (N, size)
    :raises ValueError: If a value is not finite or not in the space
    """
    if not np.all(np.isfinite(elements)):
        raise ValueError(f"`{name}` must be finite, there is NaN or infinity in them")
    try:
        return codec.encode(elements)
    except ValueError as error:
        raise ValueError(f"`{name}` must be of {space}. {error}") from None

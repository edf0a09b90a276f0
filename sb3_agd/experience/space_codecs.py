"""Conversion between the observations and actions of an environment and the flat vectors of the world model."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space


class SpaceCodec(ABC):
    """
    Conversion between elements of a space and the flat vectors of the world model, which are what SB3's policies see
    after their own preprocessing.

    :param size: Length of the world model's vectors
    :param shape: Shape of one element as SB3's buffers hold it
    :param dtype: Type of the environment's values
    """

    def __init__(self, size: int, shape: tuple[int, ...], dtype: Any):
        self.size = size
        self.shape = shape
        self.dtype = dtype

    @abstractmethod
    def encode(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: N elements of the space, in any shape that holds them
        :return: Vectors, float32, shape (N, size)
        :raises ValueError: If a value is not in a discrete space
        """

    @abstractmethod
    def vectors(self, elements: th.Tensor) -> th.Tensor:
        """
        The same for elements that are known to be in the space, on any device and without synchronising it.

        :param elements: Flattened, shape (N, prod(shape))
        :return: Vectors, float32, shape (N, size)
        """

    @abstractmethod
    def decode(self, vectors: th.Tensor) -> th.Tensor:
        """
        :param vectors: Not necessarily exact encodings, shape (..., size)
        :return: The nearest elements of the space, flattened, shape (..., prod(shape))
        """

    def elements(self, vectors: th.Tensor) -> np.ndarray:
        """
        :param vectors: See :meth:`decode`
        :return: The same as numpy arrays with the environment's type, shape (..., prod(shape))
        """
        return self.decode(vectors).cpu().numpy().astype(self.dtype)


class VectorCodec(SpaceCodec):
    """
    Numbers as they are, flattened.

    :param shape: Shape of one element
    :param dtype: Type of the environment's values; integers are rounded when decoded
    :param low: Lower bound of the values
    :param high: Upper bound of the values
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, low: np.ndarray, high: np.ndarray):
        super().__init__(int(np.prod(shape)), shape, dtype)
        self.bounds = th.as_tensor(np.stack([low.reshape(-1), high.reshape(-1)]).astype(np.float32))

    def encode(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32).reshape(-1, self.size)

    def vectors(self, elements: th.Tensor) -> th.Tensor:
        return elements.float()

    def decode(self, vectors: th.Tensor) -> th.Tensor:
        if not np.issubdtype(self.dtype, np.integer):
            return vectors
        low, high = self.bounds.to(vectors.device)
        return th.clamp(vectors.round(), low, high)


class OneHotCodec(SpaceCodec):
    """
    Integers as concatenated one-hot vectors.

    :param sizes: Number of values of each component
    :param shape: Shape of one element as SB3's buffers hold it
    :param dtype: Type of the environment's values
    """

    def __init__(self, sizes: list[int], shape: tuple[int, ...], dtype: Any):
        super().__init__(sum(sizes), shape, dtype)
        self.sizes = sizes

    def encode(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values).reshape(-1, len(self.sizes))
        indices = values.astype(np.int64)
        if np.any((indices != values) | (indices < 0) | (indices >= self.sizes)):
            raise ValueError(f"Discrete values must be integers from 0 to below {self.sizes}, not {values.tolist()}")
        return self.vectors(th.from_numpy(indices)).numpy()

    def vectors(self, elements: th.Tensor) -> th.Tensor:
        columns = elements.split(1, dim=-1)
        codes = [column == th.arange(size, device=column.device) for column, size in zip(columns, self.sizes, strict=True)]
        return th.cat(codes, dim=-1).float()

    def decode(self, vectors: th.Tensor) -> th.Tensor:
        return th.stack([part.argmax(-1) for part in vectors.split(self.sizes, dim=-1)], dim=-1)


def make_codec(space: spaces.Space, name: str) -> SpaceCodec:
    """
    :param space: An observation or action space
    :param name: What it is: ``"observation"`` or ``"action"``
    :return: The codec of the space
    :raises ValueError: If the world model cannot represent the space
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return OneHotCodec([int(space.n)], (1,), space.dtype)
    if isinstance(space, spaces.MultiDiscrete) and np.all(space.start == 0):
        return OneHotCodec([int(n) for n in space.nvec.reshape(-1)], space.shape, space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return VectorCodec(space.shape, space.dtype, np.zeros(space.shape), np.ones(space.shape))
    advice = "the world model works on flat vectors."
    if isinstance(space, spaces.Box):
        if not is_image_space(space):
            # SB3 does not round actions
            is_integer_action = name == "action" and np.issubdtype(space.dtype, np.integer)
            return VectorCodec(space.shape, np.float32 if is_integer_action else space.dtype, space.low, space.high)
        advice += " Turn images into feature vectors first, or use SB3's PPO with `CnnPolicy`."
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        advice = "its values must begin with 0, as SB3's policies expect. Shift them with a wrapper."
    elif isinstance(space, spaces.Dict):
        advice += " Flatten the dictionary with `gymnasium.wrappers.FlattenObservation`, or use SB3's PPO."
    raise ValueError(f"The {name} space {space} is not supported: {advice}")

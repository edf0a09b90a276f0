"""Conversion between the observations and actions of an environment and the flat vectors of the world model."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

# As SB3's policies take them
Observations = th.Tensor | dict[str, th.Tensor]


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

    def flatten(self, values: Any) -> np.ndarray:
        """
        :param values: N elements of the space, as an environment gives them
        :return: The same as one array. That of a Dict space has shape (N, prod(shape))
        :raises ValueError: If a part of a dictionary is missing
        """
        return np.asarray(values)

    @abstractmethod
    def encode(self, values: Any) -> np.ndarray:
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

    def shaped(self, elements: th.Tensor) -> Observations:
        """
        :param elements: Flattened, shape (N, prod(shape))
        :return: The same as SB3's buffers hold them, shape (N, *shape), or a dictionary of such tensors
        """
        return elements.reshape(-1, *self.shape)

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
    :param dtype: Type of the environment's values; integers and booleans are rounded when decoded
    :param low: Lower bound of the values
    :param high: Upper bound of the values
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, low: np.ndarray, high: np.ndarray):
        super().__init__(int(np.prod(shape)), shape, dtype)
        self._is_rounded = np.issubdtype(dtype, np.integer) or dtype == np.bool_
        self.low, self.high = low.reshape(-1), high.reshape(-1)
        self.bounds = th.as_tensor(np.stack([low.reshape(-1), high.reshape(-1)]).astype(np.float32))

    def encode(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32).reshape(-1, self.size)

    def vectors(self, elements: th.Tensor) -> th.Tensor:
        return elements.float()

    def decode(self, vectors: th.Tensor) -> th.Tensor:
        if not self._is_rounded:
            return vectors
        low, high = self.bounds.to(vectors.device)
        return th.clamp(vectors.round(), low, high)

    def elements(self, vectors: th.Tensor) -> np.ndarray:
        if not self._is_rounded:
            return super().elements(vectors)
        # Floating-point bounds may be rounded to numbers that the type of the environment cannot hold
        rounded = vectors.double().round().cpu().numpy()
        below, above = rounded <= self.low.astype(np.float64), rounded >= self.high.astype(np.float64)
        elements = np.where(below | above, 0, rounded).astype(self.dtype)
        return np.where(below, self.low, np.where(above, self.high, elements)).astype(self.dtype)


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


class DictCodec(SpaceCodec):
    """
    The parts of a dictionary, one after the other in the order of the space's keys.

    :param codecs: Codec of each part
    """

    def __init__(self, codecs: dict[str, SpaceCodec]):
        self.codecs = codecs
        # Numbers per part of a flattened element, and of a vector
        self.element_sizes = [int(np.prod(codec.shape)) for codec in codecs.values()]
        self.vector_sizes = [codec.size for codec in codecs.values()]
        dtype = np.result_type(*(codec.dtype for codec in codecs.values()))
        super().__init__(sum(self.vector_sizes), (sum(self.element_sizes),), dtype)

    def flatten(self, values: Any) -> np.ndarray:
        if not isinstance(values, dict):
            return np.asarray(values)
        if values.keys() != self.codecs.keys():
            raise ValueError(f"Dict observations must have the keys {[*self.codecs]}, not {[*values]}")
        parts = zip(self.codecs, self.element_sizes, strict=True)
        return np.concatenate([np.asarray(values[key]).reshape(-1, size) for key, size in parts], axis=1)

    def encode(self, values: Any) -> np.ndarray:
        elements = self.flatten(values).reshape(-1, *self.shape)
        parts = np.split(elements, np.cumsum(self.element_sizes)[:-1], axis=1)
        return np.concatenate([codec.encode(part) for codec, part in zip(self.codecs.values(), parts, strict=True)], axis=1)

    def vectors(self, elements: th.Tensor) -> th.Tensor:
        parts = zip(self.codecs.values(), elements.split(self.element_sizes, dim=-1), strict=True)
        return th.cat([codec.vectors(part) for codec, part in parts], dim=-1)

    def decode(self, vectors: th.Tensor) -> th.Tensor:
        return th.cat([self.codecs[key].decode(part) for key, part in self.split(vectors).items()], dim=-1)

    def split(self, vectors: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param vectors: Shape (..., size)
        :return: Vectors of each part
        """
        return dict(zip(self.codecs, vectors.split(self.vector_sizes, dim=-1), strict=True))

    def elements(self, vectors: th.Tensor) -> np.ndarray:
        return np.concatenate([self.codecs[key].elements(part) for key, part in self.split(vectors).items()], axis=-1)

    def shaped(self, elements: th.Tensor) -> dict[str, th.Tensor]:
        parts = zip(self.codecs.items(), elements.split(self.element_sizes, dim=-1), strict=True)
        return {key: part.reshape(-1, *codec.shape) for (key, codec), part in parts}


def map_parts(function: Callable[..., th.Tensor], *observations: Any) -> Any:
    """
    :param function: Function of tensors
    :param observations: Tensors, or dictionaries with the same keys
    :return: Value of the function, for dictionaries one for each key
    """
    if isinstance(observations[0], dict):
        return {key: function(*(parts[key] for parts in observations)) for key in observations[0]}
    return function(*observations)


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
    if isinstance(space, spaces.Dict) and name == "observation":
        return DictCodec({key: make_codec(part, f'{name}["{key}"]') for key, part in space.items()})
    advice = "the world model works on flat vectors."
    if isinstance(space, spaces.Box):
        if not is_image_space(space):
            # SB3 does not round actions
            is_integer_action = name == "action" and np.issubdtype(space.dtype, np.integer)
            return VectorCodec(space.shape, np.float32 if is_integer_action else space.dtype, space.low, space.high)
        advice += " Turn images into feature vectors first, or use SB3's PPO with `CnnPolicy`."
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        advice = "its values must begin with 0, as SB3's policies expect. Shift them with a wrapper."
    raise ValueError(f"The {name} space {space} is not supported: {advice}")

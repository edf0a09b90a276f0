"""Spaces of environments to vectors of the world model and back."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_agd.experience.space_codecs import make_codec

SUPPORTED: dict[str, spaces.Space] = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "unbounded box": spaces.Box(-np.inf, np.inf, (4,)),
    "half-bounded box": spaces.Box(np.array([-np.inf, 0.0], np.float32), np.array([5.0, np.inf], np.float32)),
    "double box": spaces.Box(-1e6, 1e6, (2,), dtype=np.float64),
    "matrix box": spaces.Box(-1.0, 1.0, (3, 4)),
    "number box": spaces.Box(-1.0, 1.0, ()),
    "integer box": spaces.Box(-3, 7, (3,), dtype=np.int64),
    "byte box": spaces.Box(0, 255, (5,), dtype=np.uint8),
    "frame stack": spaces.Box(-np.inf, np.inf, (4, 5, 5)),
    "normalised picture": spaces.Box(0.0, 1.0, (36, 36, 3)),
    "large map": spaces.Box(-1.0, 1.0, (64, 64)),
    "large byte box": spaces.Box(0, 255, (7056,), dtype=np.uint8),
    "small integers": spaces.Box(0, 10, (4, 5, 5), dtype=np.uint8),
    "integer matrix box": spaces.Box(-5, 5, (2, 3), dtype=np.int32),
    "boolean box": spaces.Box(0, 1, (3,), dtype=np.bool_),
    "discrete": spaces.Discrete(5),
    "discrete of one": spaces.Discrete(1),
    "multi-discrete": spaces.MultiDiscrete([3, 1, 4]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary((2, 3)),
}

IMAGES: dict[str, spaces.Space] = {
    "channels last": spaces.Box(0, 255, (64, 64, 3), dtype=np.uint8),
    "channels first": spaces.Box(0, 255, (3, 64, 64), dtype=np.uint8),
    "small": spaces.Box(0, 255, (10, 10, 1), dtype=np.uint8),
}

each_space = pytest.mark.parametrize("space", SUPPORTED.values(), ids=list(SUPPORTED))


def draw(space: spaces.Space, n_samples: int = 50) -> np.ndarray:
    space.seed(0)
    return np.stack([np.asarray(space.sample()) for _ in range(n_samples)])


@each_space
def test_decoding_undoes_encoding(space: spaces.Space) -> None:
    codec, values = make_codec(space, "observation"), draw(space)
    vectors = codec.encode(values)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(values), codec.size)
    assert np.array_equal(codec.vectors(th.from_numpy(values.reshape(len(values), -1))).numpy(), vectors)
    decoded = codec.decode(th.from_numpy(vectors)).numpy()
    assert np.allclose(decoded, values.reshape(len(values), -1))


@each_space
def test_decoded_values_belong_to_the_space(space: spaces.Space) -> None:
    codec = make_codec(space, "observation")
    decoded = codec.decode(th.from_numpy(codec.encode(draw(space)))).numpy()
    for value in decoded.astype(codec.dtype).reshape(-1, *space.shape):
        assert space.contains(value if isinstance(space, spaces.Discrete) else np.asarray(value))


@each_space
def test_elements_of_any_shape_are_encoded(space: spaces.Space) -> None:
    codec, values = make_codec(space, "observation"), draw(space, n_samples=6)
    vectors = codec.encode(values)
    assert np.array_equal(codec.encode(values.reshape(6, -1)), vectors)
    assert np.array_equal(codec.encode(values.reshape(2, 3, *space.shape)), vectors)


@each_space
def test_decoding_keeps_leading_dimensions(space: spaces.Space) -> None:
    codec = make_codec(space, "observation")
    vectors = th.from_numpy(codec.encode(draw(space, n_samples=6)))
    decoded = codec.decode(vectors.view(2, 3, codec.size))
    assert th.equal(decoded.flatten(0, 1), codec.decode(vectors))


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Box(-1, 1, (3,)), 3),
        (spaces.Box(-1, 1, (3, 4)), 12),
        (spaces.Box(-1, 1, ()), 1),
        (spaces.Discrete(5), 5),
        (spaces.MultiDiscrete([3, 2, 4]), 9),
        (spaces.MultiBinary(4), 4),
        (spaces.MultiBinary((2, 3)), 6),
    ],
    ids=str,
)
def test_length_of_the_vectors(space: spaces.Space, size: int) -> None:
    assert make_codec(space, "observation").size == size


def test_discrete_values_are_one_hot() -> None:
    vectors = make_codec(spaces.Discrete(3), "observation").encode(np.array([0, 2, 1]))
    assert vectors.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_multi_discrete_values_are_one_hot_vectors_one_after_the_other() -> None:
    vectors = make_codec(spaces.MultiDiscrete([2, 3]), "observation").encode(np.array([[0, 2], [1, 0]]))
    assert vectors.tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]


def test_inexact_vectors_decode_to_the_nearest_element() -> None:
    one_hot = make_codec(spaces.MultiDiscrete([2, 3]), "observation")
    assert one_hot.decode(th.tensor([[0.4, 0.6, -0.2, 0.1, 0.05]])).tolist() == [[1, 1]]
    binary = make_codec(spaces.MultiBinary(4), "observation")
    assert binary.decode(th.tensor([[0.4, 0.6, -3.0, 7.0]])).tolist() == [[0, 1, 0, 1]]
    integer = make_codec(spaces.Box(-3, 7, (4,), dtype=np.int64), "observation")
    assert integer.decode(th.tensor([[0.4, 6.6, -9.0, 12.0]])).tolist() == [[0, 7, -3, 7]]
    boolean = make_codec(spaces.Box(0, 1, (4,), dtype=np.bool_), "observation")
    inexact = th.tensor([[0.4, 0.6, -9.0, 12.0]])
    assert boolean.decode(inexact).tolist() == [[0, 1, 0, 1]]
    assert boolean.elements(inexact).tolist() == [[False, True, False, True]]


def test_real_numbers_decode_to_themselves() -> None:
    vectors = th.tensor([[0.1, -0.7, 0.33]])
    assert th.equal(make_codec(spaces.Box(-1.0, 1.0, (3,)), "observation").decode(vectors), vectors)


@pytest.mark.parametrize("name", ["observation", "action"])
@pytest.mark.parametrize("space", IMAGES.values(), ids=list(IMAGES))
def test_images_are_refused_with_their_name_and_advice(space: spaces.Space, name: str) -> None:
    with pytest.raises(ValueError) as error:
        make_codec(space, name)
    assert f"The {name} space {space} is not supported" in str(error.value)
    assert "CnnPolicy" in str(error.value)


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([3, 3], start=[0, 1])])
def test_discrete_spaces_that_do_not_start_at_zero_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="its values must begin with 0"):
        make_codec(space, "action")


def test_dictionaries_of_vectors_are_concatenated_in_the_order_of_their_keys() -> None:
    space = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "goal": spaces.Discrete(3)})
    codec = make_codec(space, "observation")
    values = {"position": np.array([[0.5, -0.5], [1.0, 0.0]]), "goal": np.array([2, 0])}
    vectors = codec.encode(values)
    # The space sorts its keys
    assert vectors.tolist() == [[0, 0, 1, 0.5, -0.5], [1, 0, 0, 1.0, 0.0]]
    assert codec.elements(th.from_numpy(vectors)).tolist() == [[2, 0.5, -0.5], [0, 1.0, 0.0]]
    shaped = codec.shaped(codec.decode(th.from_numpy(vectors)))
    assert {key: part.tolist() for key, part in shaped.items()} == {
        "goal": [[2], [0]],
        "position": [[0.5, -0.5], [1.0, 0.0]],
    }
    assert codec.encode({key: part[0] for key, part in values.items()}).tolist() == vectors[:1].tolist()


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (spaces.Dict({"goal": spaces.Discrete(3)}), "action"),
        (spaces.Dict({"inner": spaces.Dict({"goal": spaces.Discrete(3)})}), "observation"),
        (spaces.Dict({"camera": spaces.Box(0, 255, (64, 64, 3), dtype=np.uint8)}), "observation"),
    ],
    ids=["action", "nested", "image"],
)
def test_dictionaries_of_other_kinds_are_refused_by_name(space: spaces.Dict, name: str) -> None:
    with pytest.raises(ValueError, match=rf"The {name}.* is not supported"):
        make_codec(space, name)


@pytest.mark.parametrize(
    "space",
    [spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), spaces.Text(5), spaces.Sequence(spaces.Discrete(2))],
    ids=["tuple", "text", "sequence"],
)
def test_other_spaces_are_refused_by_name(space: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_codec(space, "observation")
    assert f"The observation space {space} is not supported" in str(error.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_decoded_integers_are_within_the_limits_of_their_type(dtype: Any) -> None:
    limits = np.iinfo(dtype)
    space = spaces.Box(limits.min, limits.max, (3,), dtype=dtype)
    # Far outside, at the limits, and inside
    vectors = th.tensor([[-1e30, 1e30, 7.0], [float(limits.min), float(limits.max), 0.0]])
    elements = make_codec(space, "observation").elements(vectors)
    assert elements.dtype == dtype
    assert elements[0].tolist() == [limits.min, limits.max, 7]
    assert elements[1].tolist() == [limits.min, limits.max, 0]


def test_decoded_integers_are_within_bounds_that_single_precision_cannot_hold() -> None:
    space = spaces.Box(0, 2147483647, (2,), dtype=np.int32)
    codec = make_codec(space, "observation")
    elements = codec.elements(th.tensor([[3e9, -5.0], [2147483648.0, 2147483520.0]]))
    assert elements.tolist() == [[2147483647, 0], [2147483647, 2147483520]]
    # The policy sees what the environment could give
    assert all(space.contains(element) for element in elements)

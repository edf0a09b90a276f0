"""Files and pickles of the replay buffer."""

import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from synthetic_episodes import ACTION_DIM, OBSERVATION_DIM, SyntheticRecorder, assert_same_contents, contents, saved

from sb3_agd.experience.replay_buffer import ARRAYS, ReplayBuffer


@pytest.mark.parametrize("n_steps", [0, 3, 200])
def test_loaded_buffer_equals_the_saved_one_and_stays_equal(n_steps: int) -> None:
    recorder = SyntheticRecorder(capacity_per_env=30, n_envs=2, max_length=8)
    recorder.run(n_steps, interruption_probability=0.05)
    other = SyntheticRecorder(capacity_per_env=30, n_envs=2, seed=1)
    other.run(70)
    twin = other.replay_buffer
    twin.load(io.BytesIO(saved(recorder.replay_buffer)))
    assert len(twin) == len(recorder.replay_buffer)
    if n_steps:
        assert_same_contents(contents(recorder.replay_buffer), contents(twin))
        draws = [buffer.sample_transitions(20, np.random.default_rng(0)) for buffer in (recorder.replay_buffer, twin)]
        assert np.array_equal(*draws)
    recorder.run(100, 0.05, twin)
    assert_same_contents(contents(recorder.replay_buffer), contents(twin))
    recorder.check(horizon=4)


def test_saved_file_holds_plain_arrays_only() -> None:
    recorder = SyntheticRecorder(capacity_per_env=30, n_envs=2)
    recorder.run(10)
    with np.load(io.BytesIO(saved(recorder.replay_buffer)), allow_pickle=False) as content:
        assert all(content[name].dtype != object for name in content.files)


def test_saved_file_is_no_larger_than_its_content() -> None:
    recorder = SyntheticRecorder(capacity_per_env=100_000)
    recorder.run(10)
    assert len(saved(recorder.replay_buffer)) < 10_000


def altered(content: bytes, **changes: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A valid file whose arrays of the given names were changed, or left out where nothing is returned."""
    with np.load(io.BytesIO(content)) as arrays:
        new = {name: changes.get(name, lambda array: array)(arrays[name]) for name in arrays.files}
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in new.items() if array is not None})
    return file.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def recorder() -> SyntheticRecorder:
    recorder = SyntheticRecorder(capacity_per_env=30, n_envs=2, max_length=8)
    recorder.run(100)
    return recorder


def assert_refused(recorder: SyntheticRecorder, content: bytes, message: str | None = None) -> None:
    before = contents(recorder.replay_buffer)
    with pytest.raises(ValueError, match=message):
        recorder.replay_buffer.load(io.BytesIO(content))
    assert_same_contents(contents(recorder.replay_buffer), before)
    recorder.run(20)
    recorder.check(horizon=4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999])
def test_truncated_file_is_refused_and_the_content_kept(recorder: SyntheticRecorder, share: float) -> None:
    content = saved(recorder.replay_buffer)
    assert_refused(recorder, content[: int(share * len(content))])


@pytest.mark.parametrize(
    "content",
    [
        b"not an archive",
        bytes(range(256)) * 10,
        pickle.dumps({"observations": [1, 2, 3]}),
        as_npy(np.zeros(3)),
        as_npy(np.array([{}, None])),
        as_npz(weights=np.zeros(3)),
        as_npz(observations=np.array([{}, None])),
    ],
    ids=["text", "bytes", "pickle", "npy", "npy with objects", "npz", "npz with objects"],
)
def test_foreign_file_is_refused_and_the_content_kept(recorder: SyntheticRecorder, content: bytes) -> None:
    assert_refused(recorder, content)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((60, 3, OBSERVATION_DIM, ACTION_DIM), "environments"),
        ((62, 2, OBSERVATION_DIM, ACTION_DIM), "buffer_size"),
        ((60, 2, OBSERVATION_DIM + 1, ACTION_DIM), "observation dimensions"),
        ((60, 2, OBSERVATION_DIM, ACTION_DIM + 1), "action dimensions"),
    ],
)
def test_file_of_a_buffer_of_another_shape_is_refused_by_name(
    recorder: SyntheticRecorder, shape: tuple[int, int, int, int], message: str
) -> None:
    assert_refused(recorder, saved(ReplayBuffer(*shape)), message)


def test_file_of_a_newer_format_is_refused(recorder: SyntheticRecorder) -> None:
    for rewards in (lambda array: array, lambda array: None):
        # Whatever else such a file holds
        content = altered(saved(recorder.replay_buffer), format_version=lambda version: version + 1, rewards=rewards)
        assert_refused(recorder, content, "newer than")


@pytest.mark.parametrize("name", [*ARRAYS, "position"])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: None,
        lambda array: array[..., :-1],
        lambda array: array[:-1],
        lambda array: array.reshape(-1)[0],
        lambda array: np.repeat(array, 2, axis=-1),
        lambda array: np.repeat(array, 20, axis=min(1, array.ndim - 1)),
        lambda array: np.full(array.shape, "text"),
    ],
    ids=["missing", "short", "few", "scalar", "wide", "long", "text"],
)
def test_file_with_an_array_that_does_not_fit_is_refused_and_the_content_kept(
    recorder: SyntheticRecorder, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert_refused(recorder, altered(saved(recorder.replay_buffer), **{name: change}))


@pytest.mark.parametrize("name", ["capacity_per_env", "format_version"])
@pytest.mark.parametrize(
    "change",
    [lambda array: None, lambda array: np.array([array] * 3), lambda array: np.array("a"), lambda array: 0.5 * array],
    ids=["missing", "list", "text", "fraction"],
)
def test_file_with_a_number_that_does_not_fit_is_refused_and_the_content_kept(
    recorder: SyntheticRecorder, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert_refused(recorder, altered(saved(recorder.replay_buffer), **{name: change}))


def test_file_with_flipped_bits_is_refused_or_loads_what_was_saved() -> None:
    recorder = SyntheticRecorder(capacity_per_env=8, max_length=4)
    recorder.run(20)
    content, before = saved(recorder.replay_buffer), contents(recorder.replay_buffer)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), size=300, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            recorder.replay_buffer.load(io.BytesIO(damaged))
        except ValueError:
            pass
        # Some bits of an archive, such as the time of writing, mean nothing
        assert_same_contents(contents(recorder.replay_buffer), before)


def test_a_pickle_holds_only_what_was_written() -> None:
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(100_000, 2, OBSERVATION_DIM, ACTION_DIM)
    for step in range(50):
        states = rng.normal(size=(2, 2, OBSERVATION_DIM)).astype(np.float32)
        ends = np.full(2, step % 10 == 9)
        buffer.add(states[0], rng.normal(size=(2, ACTION_DIM)), rng.normal(size=2), states[1], ends, ends)
    content = pickle.dumps(buffer)
    assert len(content) < 10_000
    copied = pickle.loads(content)
    for each in (buffer, copied):
        each.add(states[0], np.ones((2, ACTION_DIM)), np.ones(2), states[1], ends, ends)
    assert len(copied) == len(buffer) and copied.terminal_indices()[1].tolist() == buffer.terminal_indices()[1].tolist()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(copied, name), getattr(buffer, name))

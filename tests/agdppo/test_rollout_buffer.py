"""The rollout buffer with imagined rows."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd import AugmentedRolloutBuffer

N_STEPS, N_ENVS = 6, 2


def filled(buffer_class: type[RolloutBuffer]) -> RolloutBuffer:
    """A full buffer whose rows hold their own numbers."""
    buffer = buffer_class(N_STEPS, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)), device="cpu", n_envs=N_ENVS)
    for step in range(N_STEPS):
        number = np.arange(N_ENVS, dtype=np.float32) + 10 * step
        column = number[:, None]
        buffer.add(column, column, number, np.zeros(N_ENVS), th.as_tensor(number), th.as_tensor(number))
    buffer.compute_returns_and_advantage(th.zeros(N_ENVS), np.zeros(N_ENVS))
    return buffer


def imagined_rows(n_rows: int) -> RolloutBufferSamples:
    """Rows with negative numbers."""
    number = -1.0 - th.arange(n_rows)
    return RolloutBufferSamples(number[:, None], number[:, None], number, number, number, number)


def test_without_imagined_rows_it_draws_the_same_batches_as_sb3() -> None:
    batches = []
    for buffer_class in (RolloutBuffer, AugmentedRolloutBuffer):
        np.random.seed(0)
        batches.append(list(filled(buffer_class).get(4)))
    for theirs, ours in zip(*batches, strict=True):
        assert all(th.equal(a, b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("batch_size", [None, 6, 100])
def test_each_epoch_shows_every_real_and_imagined_row_once(batch_size: int | None) -> None:
    buffer = filled(AugmentedRolloutBuffer)
    buffer.augment(imagined_rows(7), np.random.default_rng(0))
    real = [float(env + 10 * step) for env in range(N_ENVS) for step in range(N_STEPS)]
    expected = sorted([*real, *(-1.0 - np.arange(7))])
    for _ in range(3):
        batches = list(buffer.get(batch_size))
        assert sorted(th.cat([batch.old_values for batch in batches]).tolist()) == expected
        sizes = [len(batch.advantages) for batch in batches]
        # No small rest at the end
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == (1 if batch_size is None else math.ceil(len(expected) / batch_size))
        for batch in batches:
            assert th.equal(batch.observations.flatten(), batch.old_values)


def test_real_rows_can_be_repeated() -> None:
    buffer = filled(AugmentedRolloutBuffer)
    buffer.augment(imagined_rows(7), np.random.default_rng(0), n_repeats=3)
    values = th.cat([batch.old_values for batch in buffer.get(5)])
    real = [float(env + 10 * step) for env in range(N_ENVS) for step in range(N_STEPS)]
    assert sorted(values.tolist()) == sorted([*real * 3, *(-1.0 - np.arange(7))])


def test_each_real_row_is_in_one_of_the_parts() -> None:
    buffer, parts = filled(AugmentedRolloutBuffer), []
    for part in range(5):
        buffer.augment(imagined_rows(7), np.random.default_rng(0), n_repeats=2, part=part, n_parts=5)
        first, second = (th.cat([batch.old_values for batch in buffer.get(3)]) for _ in range(2))
        assert sorted(first.tolist()) == sorted(second.tolist())
        assert (first < 0).sum() == 7
        parts.append(first[first >= 0])
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    real = [float(env + 10 * step) for env in range(N_ENVS) for step in range(N_STEPS)]
    assert sorted(th.cat(parts).tolist()) == sorted(real * 2)
    # At random, not step by step
    assert parts[0].tolist() != sorted(parts[0].tolist())


def test_the_arrays_of_the_buffer_stay_real() -> None:
    buffer = filled(AugmentedRolloutBuffer)
    buffer.augment(imagined_rows(7), np.random.default_rng(0))
    list(buffer.get(4))
    assert buffer.values.size == buffer.returns.size == N_STEPS * N_ENVS
    assert buffer.values.min() >= 0


def test_reset_drops_the_imagined_rows() -> None:
    buffer = filled(AugmentedRolloutBuffer)
    buffer.augment(imagined_rows(7), np.random.default_rng(0))
    list(buffer.get(4))
    buffer.reset()
    assert buffer.n_imagined == 0


def test_imagined_rows_are_shuffled_by_a_private_generator() -> None:
    orders = []
    for global_seed in (0, 1):
        buffer = filled(AugmentedRolloutBuffer)
        buffer.augment(imagined_rows(30), np.random.default_rng(5))
        next(buffer.get(None))
        np.random.seed(global_seed)
        rows = next(buffer.get(None)).old_values
        orders.append(rows[rows < 0].tolist())
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])

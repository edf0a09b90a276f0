"""Running statistics and standardisation."""

import numpy as np
import pytest
import torch as th
from linear_system import (
    seeded,
)

from sb3_agd.world_model.normalizer import Normalizer


def random_batches(seed: int = 0) -> list[th.Tensor]:
    generator = seeded(seed)
    return [th.randn(n, 3, generator=generator) * th.tensor([1.0, 5.0, 0.2]) + n for n in (1, 7, 0, 100, 32)]


def updated(batches: list[th.Tensor]) -> Normalizer:
    normalizer = Normalizer(batches[0].shape[1])
    for batch in batches:
        normalizer.update(batch)
    return normalizer


def test_running_statistics_equal_those_of_all_the_data() -> None:
    batches = random_batches()
    normalizer = updated(batches)
    data = th.cat(batches).double().numpy()
    assert normalizer.count == len(data)
    assert np.allclose(normalizer.shift, data.mean(0), rtol=1e-6)
    assert np.allclose(normalizer.scale, data.std(0), rtol=1e-6)
    assert np.array_equal(normalizer.low, data.min(0).astype(np.float32))
    assert np.array_equal(normalizer.high, data.max(0).astype(np.float32))


def test_running_statistics_do_not_depend_on_the_batches() -> None:
    batches = random_batches()
    whole, parts = updated([th.cat(batches)]), updated(batches)
    assert th.allclose(whole.shift, parts.shift)
    assert th.allclose(whole.scale, parts.scale)


def test_standardised_data_has_mean_zero_and_deviation_one() -> None:
    batches = random_batches()
    standardised = updated(batches)(th.cat(batches))
    assert th.allclose(standardised.mean(0), th.zeros(3), atol=1e-4)
    assert th.allclose(standardised.std(0, correction=0), th.ones(3), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e6, 1e-6])
def test_constant_dimensions_keep_scale_one(value: float) -> None:
    normalizer = updated([th.full((n, 1), value) for n in (3, 50, 1)])
    assert normalizer.scale.item() == 1
    assert normalizer(th.full((2, 1), value)).abs().max() == 0
    assert normalizer.clamp(th.full((2, 1), 5.0)).abs().max() < 1e-6


def test_rounding_jitter_around_a_large_mean_is_not_amplified() -> None:
    # Neighbouring single-precision numbers at 1e6 are 0.0625 apart
    jitter = 0.0625 * th.randint(-1, 2, (1000, 1), generator=seeded())
    normalizer = updated([1e6 + jitter])
    assert normalizer.scale.item() == 1
    assert normalizer(1e6 + jitter).abs().max() < 0.2


@pytest.mark.parametrize("offset, scale", [(1e9, 300.0), (1e6, 0.5), (-1e9, 300.0)])
def test_small_variation_around_a_large_mean_is_standardised(offset: float, scale: float) -> None:
    data = offset + scale * th.randn(1000, 1, generator=seeded(), dtype=th.float64)
    normalizer = updated(list(data.split(100)))
    assert normalizer.scale.item() == pytest.approx(scale, rel=0.1)
    assert normalizer(data.float()).std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
def test_data_of_any_scale_is_standardised(scale: float, offset: float) -> None:
    data = scale * (th.randn(2000, 1, generator=seeded()) + offset)
    normalizer = updated(list(data.split(100)))
    standardised = normalizer(data)
    assert standardised.mean().item() == pytest.approx(0, abs=1e-3)
    assert standardised.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert th.allclose(normalizer.inverse(standardised), data, rtol=1e-5, atol=1e-6 * scale)


def test_variance_of_data_with_a_large_mean_is_not_lost() -> None:
    data = 1e5 + 10 * th.randn(5000, 1, generator=seeded())
    normalizer = updated(list(data.split(64)))
    assert normalizer.scale.item() == pytest.approx(data.double().std(correction=0).item(), rel=1e-5)


def test_inverse_undoes_standardisation() -> None:
    normalizer = updated(random_batches())
    values = 100 * th.randn(4, 5, 3, generator=seeded())
    assert th.allclose(normalizer.inverse(normalizer(values)), values, rtol=1e-5, atol=1e-4)


def test_clamp_keeps_the_observed_range_plus_a_margin() -> None:
    normalizer = updated([th.tensor([[-1.0, 10.0], [3.0, 20.0], [0.0, 12.0]])])
    raw = th.tensor([[-100.0, -100.0], [100.0, 100.0], [-1.0, 20.0], [-1.2, 20.5]])
    expected = th.tensor([[-1.4, 9.0], [3.4, 21.0], [-1.0, 20.0], [-1.2, 20.5]])
    assert th.allclose(normalizer.inverse(normalizer.clamp(normalizer(raw))), expected, atol=1e-5)


def test_unused_normalizer_changes_nothing() -> None:
    normalizer, values = Normalizer(3), 1e6 * th.randn(5, 3, generator=seeded())
    for function in (normalizer, normalizer.inverse, normalizer.clamp):
        assert th.equal(function(values), values)


def test_normalizer_keeps_its_statistics_in_the_state_dict() -> None:
    batches = random_batches()
    normalizer, twin = updated(batches), Normalizer(3)
    twin.load_state_dict(normalizer.state_dict())
    for n in (normalizer, twin):
        n.update(batches[0] + 1)
    assert all(th.equal(value, twin.state_dict()[name]) for name, value in normalizer.state_dict().items())

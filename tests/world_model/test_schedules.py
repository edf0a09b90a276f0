"""Noise schedules."""

import pytest
import torch as th

from sb3_agd.world_model.schedules import CosineSchedule, LinearSchedule, Schedule

each_schedule = pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=["linear", "cosine"])


@pytest.mark.parametrize("signal", [0.1, 1.0, 7.0])
@each_schedule
def test_time_is_found_by_the_ratio_of_signal_and_noise(schedule: Schedule, signal: float) -> None:
    alpha, sigma = schedule.coefficients(th.tensor(schedule.time_at(signal)))
    assert (alpha / sigma).item() == pytest.approx(signal, rel=1e-5)


@each_schedule
def test_schedules_lead_from_data_to_noise(schedule: Schedule) -> None:
    alpha, sigma = schedule.coefficients(th.linspace(0, 1, 101, dtype=th.float64))
    assert alpha[0] == pytest.approx(1)
    assert alpha[-1] == pytest.approx(0, abs=1e-12)
    assert sigma[0] == pytest.approx(0, abs=1e-12)
    assert sigma[-1] == pytest.approx(1)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 5, 3)])
@each_schedule
def test_noise_is_mixed_in_row_by_row(schedule: Schedule, shape: tuple[int, ...]) -> None:
    generator = th.Generator().manual_seed(0)
    data, noise = th.randn(shape, generator=generator), th.randn(shape, generator=generator)
    time = th.tensor([0.0, 0.2, 0.7, 1.0])
    noisy = schedule.add_noise(data, noise, time)
    assert noisy.shape == shape
    for row in range(4):
        alpha, sigma = schedule.coefficients(time[row])
        assert th.allclose(noisy[row], alpha * data[row] + sigma * noise[row])
    assert th.allclose(noisy[0], data[0])
    assert th.allclose(noisy[-1], noise[-1], atol=1e-6)

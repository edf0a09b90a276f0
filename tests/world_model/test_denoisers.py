"""The networks that denoise segments."""

import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    OBSERVATION_DIM,
    randomised,
    seeded,
)
from torch import nn

from sb3_agd.world_model.denoisers import RecurrentDenoiser, ResidualMLPDenoiser


def denoiser_inputs(horizon: int) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    generator = seeded()
    return (
        th.randn(4, horizon, OBSERVATION_DIM + 1, generator=generator),
        th.rand(4, generator=generator),
        th.randn(4, OBSERVATION_DIM, generator=generator),
        th.randn(4, horizon, ACTION_DIM, generator=generator),
    )


@pytest.mark.parametrize("changed", range(6))
def test_recurrent_denoiser_cannot_see_the_future(changed: int) -> None:
    denoiser = randomised(RecurrentDenoiser(OBSERVATION_DIM, ACTION_DIM, 6, width=16, depth=2))
    noisy, time, start, actions = denoiser_inputs(6)
    before = denoiser(noisy, time, start, actions)
    other_noisy, other_actions = noisy.clone(), actions.clone()
    other_noisy[:, changed] += 1
    other_actions[:, changed] += 1
    for after in (denoiser(other_noisy, time, start, actions), denoiser(noisy, time, start, other_actions)):
        assert th.equal(after[:, :changed], before[:, :changed])
        differs = (after[:, changed:] - before[:, changed:]).abs() > 1e-6
        assert differs.any(-1).all()


def test_recurrent_denoiser_works_at_any_horizon() -> None:
    denoiser = randomised(RecurrentDenoiser(OBSERVATION_DIM, ACTION_DIM, 6, width=16, depth=2))
    noisy, time, start, actions = denoiser_inputs(6)
    whole = denoiser(noisy, time, start, actions)
    part = denoiser(noisy[:, :2], time, start, actions[:, :2])
    assert th.allclose(part, whole[:, :2], atol=1e-6)


def test_untrained_recurrent_denoiser_predicts_persistence() -> None:
    denoiser = RecurrentDenoiser(OBSERVATION_DIM, ACTION_DIM, 6, width=16, depth=2)
    noisy, time, start, actions = denoiser_inputs(6)
    assert th.equal(denoiser(noisy, time, start, actions)[..., :-1], start[:, None].expand(-1, 6, -1))


@pytest.mark.parametrize("network", [RecurrentDenoiser, ResidualMLPDenoiser])
def test_denoiser_depends_on_each_of_its_inputs_and_not_on_other_rows(network: type[nn.Module]) -> None:
    denoiser = randomised(network(OBSERVATION_DIM, ACTION_DIM, 6, width=16, depth=2))
    inputs = denoiser_inputs(6)
    before = denoiser(*inputs)
    assert before.shape == inputs[0].shape
    for index in range(4):
        changed = [tensor.clone() for tensor in inputs]
        changed[index][0] += 0.1
        after = denoiser(*changed)
        assert not th.allclose(after[0], before[0])
        assert th.allclose(after[1:], before[1:], atol=1e-6)

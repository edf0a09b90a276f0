"""Terminations that are denoised with the states."""

import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    HORIZON,
    OBSERVATION_DIM,
    Recording,
    beyond_limit,
    each_network,
    fitted,
    linear_policy,
    make_model,
    never,
    seeded,
    well_fitted,
)
from torch import nn

from sb3_agd.world_model import Segments
from sb3_agd.world_model.schedules import Schedule
from sb3_agd.world_model.segment_denoiser import SegmentDenoiser
from sb3_agd.world_model.termination import absorbing

FLAG = OBSERVATION_DIM
SAMPLERS = {
    "ddpm": {"sampler": "ddpm", "n_denoising_steps": 8, "noise_density": "uniform"},
    "flow": {"sampler": "flow", "n_denoising_steps": 2},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@each_network
def test_denoised_terminations_are_those_of_the_real_rule(network: str, sampler: str) -> None:
    model = well_fitted(Recording(beyond_limit), 500, network=network, terminations="denoised", **SAMPLERS[sampler])
    real = Recording(beyond_limit, seed=5).segments(5_000)
    # Segments that the end of the recording cut off say nothing about how long they would have gone on
    whole = real.mask.all(1) | real.terminations.any(1)
    real = real.map(lambda array: array[whole])
    imagined = model.predict(real.observations[:, 0], real.actions, seeded(6))
    assert imagined.observations.shape == real.observations.shape
    assert imagined.rewards.shape == imagined.terminations.shape == (len(real), HORIZON)

    rate, real_rate = (each.terminations[each.mask].float().mean().item() for each in (imagined, real))
    assert 0.02 < real_rate < 0.03
    assert abs(rate - real_rate) < 0.005
    ends, really_ends = (each.terminations.any(1) for each in (imagined, real))
    # One in thirteen really ends
    assert (ends == really_ends).float().mean() > 0.97
    assert ends[really_ends].float().mean() > 0.85


def segments_with_ends() -> Segments:
    """Three segments of three transitions: one terminates after the first, one is cut off there, one goes on."""
    mask = th.tensor([[True, False, False], [True, False, False], [True, True, True]])
    terminations = th.tensor([[True, False, False], [False] * 3, [False] * 3])
    # Copies of the last transition in the padding
    actions = th.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 4.0, 5.0]])[..., None]
    return Segments(th.zeros(3, 4, OBSERVATION_DIM), actions, th.zeros(3, 3), terminations, mask)


def test_an_episode_that_has_terminated_stays_over_to_the_end_of_the_segment() -> None:
    segments = segments_with_ends()
    flags, absorbed = absorbing(segments)
    assert flags.squeeze(-1).tolist() == [[-1, 1, 1, 1], [-1] * 4, [-1] * 4]
    # What follows a cut is not known
    assert absorbed.mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert th.equal(absorbed.observations, segments.observations)


def test_actions_do_not_tell_where_an_episode_ends() -> None:
    segments = segments_with_ends()
    _, absorbed = absorbing(segments)
    assert th.equal(absorbed.actions[segments.mask], segments.actions[segments.mask])
    assert absorbed.actions[0].flatten().tolist() == [1, 2, 1]
    assert absorbed.actions[1].flatten().tolist() == [2, 3, 2]


def test_the_denoising_loss_counts_the_flags() -> None:
    """A network that knows all but the terminations has the squared error of the flags, 2 where one is missed, as its loss."""
    model = make_model(terminations="denoised", network="mlp")
    segments = segments_with_ends()

    class NeverOver(nn.Module):
        def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
            assert start.shape == (len(noisy), OBSERVATION_DIM + 1) and (start[:, FLAG] == -1).all()
            estimate = th.zeros_like(noisy)
            estimate[..., FLAG] = -1
            return estimate

    model.networks["denoiser"] = NeverOver()
    # Three of seven transitions are or come after the terminal one, and one number of four is the flag
    assert model.denoising_loss(segments, seeded()).item() == pytest.approx(3 / 7 * 2**2 / (OBSERVATION_DIM + 2))


@each_network
def test_the_classifier_is_not_trained(network: str) -> None:
    source = Recording(beyond_limit)
    model = make_model(network=network, terminations="denoised")
    before = [weight.clone() for weight in model.networks["termination"].parameters()]
    assert model.fit(source, 2, 16, generator=seeded())["termination_loss"] == 0
    assert all(map(th.equal, before, model.networks["termination"].parameters()))


class AlwaysOver(nn.Module):
    """Denoiser whose every transition is terminal."""

    is_autoregressive = False

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return th.ones_like(noisy)


def test_no_termination_is_denoised_before_one_was_observed() -> None:
    model = fitted(Recording(never), terminations="denoised")
    model.ema_networks["denoiser"] = AlwaysOver()
    start = th.zeros(50, OBSERVATION_DIM)
    assert not model.imagine(start, linear_policy, generator=seeded()).terminations.any()
    model.observe(start, th.zeros(50, ACTION_DIM), th.zeros(50), th.ones(50))
    assert model.imagine(start, linear_policy, generator=seeded()).terminations.all()


def test_a_loaded_model_denoises_the_terminations_of_the_saved_one() -> None:
    model = fitted(Recording(beyond_limit), 100, terminations="denoised")
    other = make_model(terminations="denoised", seed=1)
    other.load_state_dict(model.state_dict())
    start = th.randn(500, OBSERVATION_DIM, generator=seeded())
    imagined, again = (one.imagine(start, linear_policy, generator=seeded(1)) for one in (model, other))
    assert imagined.terminations.any() and th.equal(imagined.terminations, again.terminations)


class CorrelatedDenoiser(nn.Module):
    """
    Exact denoiser of transitions that are Gaussian with mean 0, whose first state number and flag are correlated.

    :param schedule: Noise schedule
    :param covariance: Of next states, flag and reward, shape (OBSERVATION_DIM + 2, OBSERVATION_DIM + 2)
    """

    is_autoregressive = False

    def __init__(self, schedule: Schedule, covariance: th.Tensor):
        super().__init__()
        self.schedule = schedule
        self.covariance = covariance

    def gain(self, time: th.Tensor) -> th.Tensor:
        alpha, sigma = self.schedule.coefficients(time)
        return alpha * self.covariance @ th.linalg.inv(alpha**2 * self.covariance + sigma**2 * th.eye(len(self.covariance)))

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return noisy @ self.gain(time[0]).T


@pytest.mark.parametrize("weight", ["calibrated", "sigma4"])
def test_guidance_moves_the_flag_only_as_far_as_the_states_that_it_moves_are_correlated_with_it(weight: str) -> None:
    """Calibrated guidance moves by posterior covariance times gradient; the paper's moves what the gradient is taken in."""
    model = make_model(horizon=1, terminations="denoised", n_denoising_steps=4)
    covariance = 0.1 * th.eye(OBSERVATION_DIM + 2)
    covariance[0, FLAG] = covariance[FLAG, 0] = 0.05
    model.ema_networks["denoiser"] = CorrelatedDenoiser(model.schedule, covariance)
    start, noisy, time, scale = th.zeros(20, OBSERVATION_DIM), 0.3 * th.randn(20, 1, FLAG + 2, generator=seeded()), 0.5, 0.4

    def denoised(guidance_scale: float) -> th.Tensor:
        denoiser = SegmentDenoiser(
            model, start, 1, linear_policy, lambda segments: segments.observations[:, 1, 0], guidance_scale, weight
        )
        return denoiser(noisy, time)

    moved = (denoised(scale) - denoised(0.0)).squeeze(1)
    if weight == "sigma4":
        assert (moved[:, 0] > 0).all() and (moved[:, 1:] == 0).all()
    else:
        alpha, sigma = model.schedule.coefficients(th.tensor(time))
        posterior = sigma**2 / alpha * model.ema_networks["denoiser"].gain(th.tensor(time))
        assert posterior[FLAG, 0] > 0.01
        th.testing.assert_close(moved, (scale * posterior[:, 0]).expand_as(moved), rtol=1e-4, atol=1e-6)


def test_states_that_the_policy_and_the_objective_see_have_no_flag() -> None:
    model = fitted(Recording(beyond_limit), terminations="denoised")
    shapes = set()

    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        shapes.add(states.shape[-1])
        return linear_policy(states)

    def objective(segments: Segments) -> th.Tensor:
        shapes.add(segments.observations.shape[-1])
        return segments.observations.sum((1, 2))

    imagined = model.imagine(th.zeros(5, OBSERVATION_DIM), policy, objective, 0.1, seeded())
    assert shapes == {OBSERVATION_DIM} and imagined.observations.shape == (5, HORIZON + 1, OBSERVATION_DIM)


def test_a_rule_of_termination_is_refused_where_terminations_are_denoised() -> None:
    with pytest.raises(ValueError, match=r'`termination_fn` .* without `terminations="denoised"`'):
        make_model(terminations="denoised", termination_fn=lambda *rows: rows[0][:, 0] > 0)

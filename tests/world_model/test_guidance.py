"""How guides act on imagined segments: selection, and moving denoised segments."""

import dataclasses

import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    GAMMA,
    HORIZON,
    OBSERVATION_DIM,
    VALUE_WEIGHTS,
    GaussianDenoiser,
    Recording,
    assert_equal,
    each_guide,
    each_sampler,
    exact_model,
    fitted,
    linear_critic,
    linear_policy,
    make_model,
    objective_of,
    seeded,
)
from torch import nn

from sb3_agd.imagination import Critic, ExponentialAdvantageGuide, Guide, RewardGuide, SigmoidAdvantageGuide
from sb3_agd.imagination.guides import select_candidates
from sb3_agd.world_model import Segments
from sb3_agd.world_model.samplers import time_steps


def test_candidates_with_nan_objectives_come_last_and_huge_objectives_do_not_overflow() -> None:
    nan, inf = float("nan"), float("inf")
    objectives = th.tensor([nan, 0.0, 3e38, -3e38, -inf, -3e38, inf, 1.0, nan, nan])
    for seed in range(20):
        generator = th.Generator().manual_seed(seed)
        chosen = select_candidates(objectives, 2, 10.0, generator)
        assert chosen[:4].tolist() == [1, 2, 5, 6] or chosen[:4].tolist() == [1, 2, 4, 6]
        assert chosen[4] in (8, 9)


def test_candidates_are_drawn_with_the_tilted_probabilities() -> None:
    objectives = th.tensor([0.0, 1.0, 2.0]).repeat(60_000)
    chosen = select_candidates(objectives, 3, 0.7, th.Generator().manual_seed(0))
    assert th.equal(chosen // 3, th.arange(60_000))
    drawn = chosen % 3
    shares = drawn.bincount(minlength=3) / len(drawn)
    th.testing.assert_close(shares, (0.7 * th.tensor([0.0, 1.0, 2.0])).softmax(0), atol=5 * 0.5 / len(drawn) ** 0.5, rtol=0)


@pytest.mark.parametrize("n_steps", [4, 32])
@pytest.mark.parametrize("guide", [SigmoidAdvantageGuide(), ExponentialAdvantageGuide()], ids=["sag", "eag"])
@each_sampler
def test_guidance_raises_the_expected_advantage_monotonically(sampler: str, guide: Guide, n_steps: int) -> None:
    model = exact_model(sampler=sampler, n_denoising_steps=n_steps)
    start = th.randn(500, OBSERVATION_DIM, generator=seeded())
    actions = th.randn(500, HORIZON, ACTION_DIM, generator=seeded(1))
    critic = linear_critic()
    expected = []
    for scale in (0.0, 0.1, 0.2, 0.5, 1.0):
        imagined = model.imagine(start, lambda _, steps: actions[:, steps], objective_of(guide, critic), scale, seeded(2))
        expected.append(critic.advantages(imagined).sum(1).mean().item())
    assert (th.tensor(expected).diff() > 0.01).all()


def test_reward_guidance_raises_the_expected_reward_monotonically() -> None:
    model = exact_model(n_denoising_steps=16)
    start = th.randn(500, OBSERVATION_DIM, generator=seeded())
    actions = th.randn(500, HORIZON, ACTION_DIM, generator=seeded(1))
    expected = []
    for scale in (0.0, 0.1, 0.2, 0.5, 1.0):
        imagined = model.imagine(
            start, lambda _, steps: actions[:, steps], objective_of(RewardGuide(), linear_critic()), scale, seeded(2)
        )
        expected.append(imagined.rewards.sum(1).mean().item())
    assert (th.tensor(expected).diff() > 0.01).all()


each_number_of_steps = pytest.mark.parametrize(
    "sampler, n_steps", [("flow", 1), ("flow", 2), ("flow", 4), ("flow", 16), ("heun", 4), ("ddim", 16), ("ddpm", 128)]
)


@pytest.mark.parametrize("variance", [0.01, 0.1, 1.0])
@each_number_of_steps
def test_guidance_tilts_gaussian_data_as_the_closed_form_says(sampler: str, n_steps: int, variance: float) -> None:
    """
    Gaussian data of variance ``v`` reweighted by ``exp(c J)`` with a linear ``J`` move by ``c v grad J``. For one transition
    and a linear critic, ``grad J = gamma * weights / advantage_std``.
    """
    model = make_model(horizon=1, sampler=sampler, n_denoising_steps=n_steps)
    spread, n_data, scale, advantage_std = th.tensor([0.1, 0.5]), 20_000, 1.2, 2.0
    data = 3 + spread * th.randn(n_data, OBSERVATION_DIM, generator=seeded())
    model.observe(data, th.zeros(n_data, ACTION_DIM), th.randn(n_data, generator=seeded()), th.zeros(n_data))
    model.ema_networks["denoiser"] = GaussianDenoiser(model.schedule, variance)
    start = th.zeros(1000, OBSERVATION_DIM)
    unguided, guided = (
        model.imagine(
            start,
            lambda s, _: s[..., :1],
            objective_of(ExponentialAdvantageGuide(), linear_critic(advantage_std)),
            c,
            seeded(1),
        ).observations[:, 1]
        for c in (0.0, scale)
    )
    expected = scale * variance * spread**2 * GAMMA * VALUE_WEIGHTS / advantage_std
    # The noise is the same in both; a few samples are clamped to the observed range
    assert th.allclose((guided - unguided).mean(0), expected, rtol=0.1)
    assert th.allclose(guided.std(0), unguided.std(0), rtol=0.05)
    lengths = ((guided - unguided) / model.observation_normalizer.scale).norm(dim=1)
    assert model.guidance_norm == pytest.approx(lengths.mean().item(), rel=1e-3)


@each_number_of_steps
def test_guidance_tilts_segments_of_the_linear_system_as_the_closed_form_says(sampler: str, n_steps: int) -> None:
    """Segments with covariance ``S`` move by ``c S grad J``: earlier states too, from which better ones follow."""
    model = exact_model(sampler=sampler, n_denoising_steps=n_steps)
    start, actions = th.zeros(50, OBSERVATION_DIM), th.zeros(50, HORIZON, ACTION_DIM)
    unguided, guided = (
        model.imagine(
            start, lambda _, steps: actions[:, steps], objective_of(ExponentialAdvantageGuide(), linear_critic()), c, seeded()
        ).observations[:, 1:]
        for c in (0.0, 0.3)
    )
    denoiser = model.ema_networks["denoiser"]
    # Of states 1 to H, each state is the end of one transition and, except for the last, the start of another
    slope = (GAMMA - 1) * th.ones(HORIZON, 1) * VALUE_WEIGHTS
    slope[-1] = GAMMA * VALUE_WEIGHTS
    slope = th.cat([slope, th.zeros(HORIZON, 1)], dim=1) * denoiser.scale
    expected = ((denoiser.covariance @ slope.flatten()).view(HORIZON, -1) * denoiser.scale)[:, :-1]
    th.testing.assert_close((guided - unguided).double().mean(0), 0.3 * expected, rtol=0.1, atol=0.002)


def test_guidance_does_not_move_next_states_that_are_certain() -> None:
    model = make_model(horizon=1)
    model.ema_networks["denoiser"] = GaussianDenoiser(model.schedule, 0.0)
    start = th.zeros(20, OBSERVATION_DIM)
    imagined = model.imagine(start, linear_policy, objective_of(ExponentialAdvantageGuide(), linear_critic()), 100.0, seeded())
    assert th.equal(imagined.observations[:, 1], start)
    assert model.guidance_norm == 0


def test_sigmoid_guidance_moves_segments_less_than_exponential_guidance_where_advantages_are_high() -> None:
    model = exact_model(n_denoising_steps=16)
    start, actions = th.zeros(200, OBSERVATION_DIM), th.zeros(200, HORIZON, ACTION_DIM)

    def shift(guide: Guide, bonus: float) -> float:
        critic = Critic(lambda observations: observations @ VALUE_WEIGHTS, lambda rewards: rewards + bonus, GAMMA)
        unguided = model.imagine(start, lambda _, steps: actions[:, steps], generator=seeded())
        guided = model.imagine(start, lambda _, steps: actions[:, steps], objective_of(guide, critic), 0.2, seeded())
        return (guided.observations - unguided.observations).norm(dim=-1).mean().item()

    low, high = -30.0, 30.0
    assert shift(ExponentialAdvantageGuide(), high) == pytest.approx(shift(ExponentialAdvantageGuide(), low))
    assert shift(SigmoidAdvantageGuide(), low) == pytest.approx(shift(ExponentialAdvantageGuide(), low), rel=1e-3)
    assert shift(SigmoidAdvantageGuide(), high) < 1e-3 * shift(SigmoidAdvantageGuide(), low)


@each_guide
@each_sampler
def test_guidance_scale_zero_equals_no_guide_bit_for_bit(sampler: str, guide: Guide) -> None:
    model = exact_model(sampler=sampler)
    start = th.randn(20, OBSERVATION_DIM, generator=seeded())
    unguided = model.imagine(start, linear_policy, generator=seeded(1))
    assert_equal(model.imagine(start, linear_policy, objective_of(guide, linear_critic()), 0.0, seeded(1)), unguided)
    assert model.guidance_norm == 0
    model.imagine(start, linear_policy, objective_of(guide, linear_critic()), 0.5, seeded(1))
    assert model.guidance_norm > 0


def test_guide_sees_denoised_segments_in_raw_units() -> None:
    seen = []

    class Spy(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            seen.append(segments.map(th.clone))
            return critic.advantages(segments).sum(1)

    model = exact_model(n_denoising_steps=64)
    start = th.full((50, OBSERVATION_DIM), 7.0)
    imagined = model.imagine(start, linear_policy, objective_of(Spy(), linear_critic()), 1e-3, seeded())
    assert len(seen) == 64
    for segments in seen:
        assert th.equal(segments.observations[:, 0], start)
        assert segments.observations.shape == imagined.observations.shape
        assert segments.actions.shape == imagined.actions.shape
        assert segments.rewards.shape == segments.terminations.shape == segments.mask.shape == imagined.rewards.shape
    # Close to the end of the reverse process the denoised segments hardly differs from the result
    assert th.allclose(seen[-1].observations, imagined.observations, atol=0.1)
    assert th.allclose(seen[-1].rewards, imagined.rewards, atol=0.1)


def test_guidance_leaves_no_gradients_behind() -> None:
    value_net = nn.Linear(OBSERVATION_DIM, 1)
    policy_net = nn.Linear(OBSERVATION_DIM, ACTION_DIM)
    critic = Critic(lambda observations: value_net(observations).squeeze(-1), lambda rewards: rewards, GAMMA)
    for network in ("recurrent", "mlp"):
        model = make_model(network=network)
        start = th.zeros(5, OBSERVATION_DIM)
        guide = SigmoidAdvantageGuide()
        imagined = model.imagine(start, lambda states, _: policy_net(states), objective_of(guide, critic), 1.0, seeded())
        parameters = [*value_net.parameters(), *policy_net.parameters(), *model.parameters()]
        assert all(parameter.grad is None for parameter in parameters)
        assert not any(getattr(imagined, field.name).requires_grad for field in dataclasses.fields(imagined))


class Sum(Guide):
    """Raises all states."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return segments.observations.sum((1, 2))


def test_policy_is_asked_at_the_guided_states() -> None:
    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        asked.append(states)
        return linear_policy(states)

    model, asked = exact_model(n_denoising_steps=4), []
    model.imagine(th.zeros(5, OBSERVATION_DIM), policy, objective_of(Sum(), linear_critic()), 1.0, seeded())
    # Four unguided passes, one pass of guidance at the first step, four guided passes, and the states that are returned
    assert len(asked) == 10
    for unguided, guided in zip(asked[1:4], asked[6:9], strict=True):
        assert (guided[:, 1:] > unguided[:, 1:]).all()


@pytest.mark.parametrize("network", ["recurrent", "mlp"])
def test_returned_actions_are_the_policy_s_at_the_guided_states(network: str) -> None:
    model = make_model(network=network)
    segments = model.imagine(th.zeros(50, OBSERVATION_DIM), linear_policy, objective_of(Sum(), linear_critic()), 2.0, seeded())
    th.testing.assert_close(segments.actions, linear_policy(segments.observations[:, :-1]))


@each_guide
def test_guidance_of_any_strength_stays_near_the_observed_range(guide: Guide) -> None:
    source = Recording()
    model, data = fitted(source), source.every_transition()
    asked = []

    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        asked.append(states)
        return linear_policy(states)

    imagined = model.imagine(data.observations[:50, 0], policy, objective_of(guide, linear_critic()), 1e9, seeded(1))
    states = (th.cat(asked, dim=1), data.observations)
    for values, observed in (states, (imagined.rewards, data.rewards)):
        width = observed.max() - observed.min()
        assert values.isfinite().all()
        assert values.min() > observed.min() - 0.2 * width
        assert values.max() < observed.max() + 0.2 * width


@pytest.mark.parametrize("sampler, n_steps", [("flow", 8), ("ddim", 8), ("ddpm", 16), ("ddpm", 128)])
def test_the_sigma4_weight_shifts_gaussian_data_as_the_closed_form_says(sampler: str, n_steps: int) -> None:
    """
    With a linear critic the gradient is constant, so guided and unguided samples from the same noise differ by a number that
    obeys the recursion of the sampler: the shift of the denoised sample is ``gain * difference + scale * sigma^4 * gradient``.
    """
    model = make_model(horizon=1, sampler=sampler, n_denoising_steps=n_steps)
    spread, variance, scale, n_data = th.tensor([0.1, 0.5]), 0.6, 0.1 * n_steps, 20_000
    data = 3 + spread * th.randn(n_data, OBSERVATION_DIM, generator=seeded())
    model.observe(data, th.zeros(n_data, ACTION_DIM), th.randn(n_data, generator=seeded()), th.zeros(n_data))
    model.ema_networks["denoiser"] = GaussianDenoiser(model.schedule, variance)
    unguided, guided = (
        model.imagine(
            th.zeros(2000, OBSERVATION_DIM),
            lambda s, _: s[..., :1],
            objective_of(ExponentialAdvantageGuide(), linear_critic()),
            c,
            seeded(1),
            guidance_weight="sigma4",
        ).observations[:, 1]
        for c in (0.0, scale)
    )
    difference = denoised = 0.0
    for time, earlier in time_steps(n_steps):
        coefficients = [model.schedule.coefficients(at) for at in (time, earlier)]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ([number.item() for number in pair] for pair in coefficients)
        posterior = sigma_s**2 / sigma_t**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
        gain = alpha_t * variance / (alpha_t**2 * variance + sigma_t**2)
        denoised = gain * difference + scale * posterior**2
        kept = max(sigma_s**2 - (posterior if sampler == "ddpm" else 0.0), 0.0) ** 0.5
        difference = alpha_s * denoised + kept * (difference - alpha_t * denoised) / sigma_t
    # The gradient with respect to standardised states
    expected = denoised * spread**2 * GAMMA * VALUE_WEIGHTS
    assert expected.abs().max() > 0.001
    # A few samples are clamped to the observed range
    th.testing.assert_close((guided - unguided).median(0).values, expected, rtol=0.03, atol=1e-4)


def test_an_unknown_weight_of_guidance_is_refused() -> None:
    objective = objective_of(ExponentialAdvantageGuide(), linear_critic())
    with pytest.raises(ValueError, match="`guidance_weight` must be one of"):
        make_model().imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, objective, 1.0, guidance_weight="sigma2")


def test_a_guide_that_leaves_the_last_state_alone_moves_the_others_as_before() -> None:
    moved = {}
    for last_state in (True, False):
        guide = ExponentialAdvantageGuide(weight="sigma4", last_state=last_state)
        states = th.randn(5, HORIZON + 1, OBSERVATION_DIM, generator=seeded()).requires_grad_()
        nothing = th.zeros(5, HORIZON, dtype=th.bool)
        segments = Segments(states, th.zeros(5, HORIZON, ACTION_DIM), th.zeros(5, HORIZON), nothing, ~nothing)
        (moved[last_state],) = th.autograd.grad(guide.checked_objective(segments, linear_critic()).sum(), states)
    assert th.equal(moved[True][:, :-1], moved[False][:, :-1])
    assert (moved[False][:, -1] == 0).all() and (moved[True][:, -1] != 0).all()

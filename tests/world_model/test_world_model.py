"""The world model on toy systems whose laws are known."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_agd.world_model import (
    Critic,
    DiffusionWorldModel,
    ExponentialAdvantageGuide,
    Guide,
    RewardGuide,
    Segments,
    SigmoidAdvantageGuide,
)
from sb3_agd.world_model.denoisers import RecurrentDenoiser, ResidualMLPDenoiser
from sb3_agd.world_model.guides import GUIDES
from sb3_agd.world_model.normalizer import Normalizer
from sb3_agd.world_model.samplers import PATHS, GaussianPath
from sb3_agd.world_model.segments import mask_after_termination

OBSERVATION_DIM, ACTION_DIM, HORIZON = 2, 1, 3
GAMMA = 0.9
# Laws of the linear system: s' = s @ TRANSITION + a @ CONTROL (+ noise), r = s' @ REWARD_WEIGHTS (+ noise)
TRANSITION = th.tensor([[0.9, 0.2], [-0.2, 0.9]])
CONTROL = th.tensor([[0.3, 0.5]])
REWARD_WEIGHTS = th.tensor([1.0, -0.5])
NOISE_STD = 0.3
VALUE_WEIGHTS = th.tensor([2.0, 1.0])

each_sampler = pytest.mark.parametrize("sampler", sorted(PATHS))
each_network = pytest.mark.parametrize("network", ["recurrent", "mlp"])
each_guide = pytest.mark.parametrize("guide", [guide() for guide in GUIDES.values()], ids=list(GUIDES))


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Threads only cost time on networks as small as these."""
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(n_threads)


def seeded(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def roll_out(start: th.Tensor, actions: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """Next states and, last, rewards of the linear system, shape (B, H, OBSERVATION_DIM + 1)."""
    state, rows = start, []
    for step in range(actions.shape[1]):
        control = actions[:, step] @ CONTROL.to(actions)
        state = state @ TRANSITION.to(start) + control + NOISE_STD * noise[:, step, :-1]
        reward = state @ REWARD_WEIGHTS.to(start) + NOISE_STD * noise[:, step, -1]
        rows.append(th.cat([state, reward[:, None]], dim=1))
    return th.stack(rows, dim=1)


def linear_segments(n_segments: int, generator: th.Generator) -> Segments:
    """Segments of the noisy linear system, none of which ends early."""
    start = th.randn(n_segments, OBSERVATION_DIM, generator=generator)
    actions = th.randn(n_segments, HORIZON, ACTION_DIM, generator=generator)
    clean = roll_out(start, actions, th.randn(n_segments, HORIZON, OBSERVATION_DIM + 1, generator=generator))
    return Segments(
        observations=th.cat([start[:, None], clean[..., :-1]], dim=1),
        actions=actions,
        rewards=clean[..., -1],
        terminations=th.zeros(n_segments, HORIZON, dtype=th.bool),
        mask=th.ones(n_segments, HORIZON, dtype=th.bool),
    )


def never(next_states: th.Tensor, generator: th.Generator) -> th.Tensor:
    return th.zeros(next_states.shape[:-1], dtype=th.bool)


def by_chance(next_states: th.Tensor, generator: th.Generator) -> th.Tensor:
    return th.rand(next_states.shape[:-1], generator=generator) < 0.05


def beyond_limit(next_states: th.Tensor, generator: th.Generator) -> th.Tensor:
    return next_states[..., 0] > 1.2


def at_once(next_states: th.Tensor, generator: th.Generator) -> th.Tensor:
    return th.ones(next_states.shape[:-1], dtype=th.bool)


Rule = Callable[[th.Tensor, th.Generator], th.Tensor]


class Recording:
    """
    Episodes of the noiseless linear system under random actions, and a source of training data. A window that reaches
    the end of its episode goes on with copies of the last transition, masked.

    :param rule: When an episode terminates
    :param seed: Seed of the episodes and of the draws
    """

    def __init__(self, rule: Rule = never, seed: int = 0, n_episodes: int = 300, length: int = 20):
        self.generator = seeded(seed)
        start = th.randn(n_episodes, OBSERVATION_DIM, generator=self.generator)
        start[:, 0] = start[:, 0].clamp(max=1.1)
        self.actions = th.randn(n_episodes, length, ACTION_DIM, generator=self.generator)
        clean = roll_out(start, self.actions, th.zeros(n_episodes, length, OBSERVATION_DIM + 1))
        self.states = th.cat([start[:, None], clean[..., :-1]], dim=1)
        self.rewards = clean[..., -1]
        self.terminations = rule(self.states[:, 1:], self.generator)
        mask = mask_after_termination(self.terminations)
        self.last = mask.sum(1) - 1
        self.starts = mask.nonzero()
        self.terminal_indices = (mask & self.terminations).nonzero()
        self.termination_rate = len(self.terminal_indices) / len(self.starts)

    def cut(self, starts: th.Tensor, horizon: int) -> Segments:
        episode, steps = starts[:, :1], starts[:, 1:] + th.arange(horizon)
        inside = th.minimum(steps, self.last[episode])
        mask = steps == inside
        return Segments(
            observations=self.states[episode, th.cat([starts[:, 1:], inside + 1], dim=1)],
            actions=self.actions[episode, inside],
            rewards=self.rewards[episode, inside],
            terminations=self.terminations[episode, inside] & mask,
            mask=mask,
        )

    def segments(self, n_segments: int) -> Segments:
        chosen = th.randint(len(self.starts), (n_segments,), generator=self.generator)
        return self.cut(self.starts[chosen], HORIZON)

    def terminal_transitions(self, n_transitions: int) -> Segments:
        chosen = th.randint(len(self.terminal_indices), (n_transitions,), generator=self.generator)
        return self.cut(self.terminal_indices[chosen], 1)

    def every_transition(self) -> Segments:
        return self.cut(self.starts, 1)


def observe(model: DiffusionWorldModel, segments: Segments) -> None:
    mask = segments.mask
    next_states, actions = segments.observations[:, 1:][mask], segments.actions[mask]
    model.observe(next_states, actions, segments.rewards[mask], segments.terminations[mask])


def make_model(**changes: Any) -> DiffusionWorldModel:
    kwargs: dict[str, Any] = dict(
        observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM, horizon=HORIZON, width=16, depth=2, seed=0
    )
    return DiffusionWorldModel(**{**kwargs, **changes})


def fitted(source: Any, gradient_steps: int = 5, **changes: Any) -> DiffusionWorldModel:
    model = make_model(**changes)
    observe(model, source.every_transition())
    model.fit(source, gradient_steps, batch_size=64, generator=seeded())
    return model


def well_fitted(source: Any, gradient_steps: int = 400, **changes: Any) -> DiffusionWorldModel:
    return fitted(source, gradient_steps, width=64, learning_rate=3e-3, ema_decay=0.98, **changes)


def linear_policy(states: th.Tensor, steps: slice | None = None) -> th.Tensor:
    return states.sum(-1, keepdim=True).tanh()


def linear_critic(advantage_std: float = 1.0) -> Critic:
    return Critic(lambda observations: observations @ VALUE_WEIGHTS, lambda rewards: rewards, GAMMA, advantage_std)


def assert_equal(first: Segments, second: Segments) -> None:
    for name in ("observations", "actions", "rewards", "terminations", "mask"):
        assert th.equal(getattr(first, name), getattr(second, name)), name


class ExactDenoiser(nn.Module):
    """
    Posterior mean of the linear system's next states and rewards given their noisy version, the start state and the
    actions.

    The standardised segment ``x`` is Gaussian, its mean affine in start and actions, its covariance constant, so
    that the posterior mean is the regression ``mean + alpha S (alpha^2 S + sigma^2 I)^-1 (x_t - alpha mean)``.

    :param model: The world model whose normalisers and path it works with
    :param horizon: Number of transitions
    """

    is_autoregressive = False

    def __init__(self, model: DiffusionWorldModel, horizon: int = HORIZON):
        super().__init__()
        self.path: GaussianPath = model.path
        states, actions, rewards = model.observation_normalizer, model.action_normalizer, model.reward_normalizer
        self.shift = th.cat([states.shift, rewards.shift]).double()
        self.scale = th.cat([states.scale, rewards.scale]).double()
        self.action_shift, self.action_scale = actions.shift.double(), actions.scale.double()
        n_noises = horizon * (OBSERVATION_DIM + 1)
        noise = th.eye(n_noises, dtype=th.float64).view(n_noises, horizon, -1)
        nothing = th.zeros(n_noises, horizon, ACTION_DIM, dtype=th.float64)
        origin = th.zeros(n_noises, OBSERVATION_DIM, dtype=th.float64)
        effects = (roll_out(origin, nothing, noise) / self.scale).flatten(1)
        self.covariance = effects.T @ effects

    def mean(self, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Standardised mean given standardised start and actions, shape (B, H, OBSERVATION_DIM + 1)."""
        start = start.double() * self.scale[:-1] + self.shift[:-1]
        actions = actions.double() * self.action_scale + self.action_shift
        noise = th.zeros(*actions.shape[:2], OBSERVATION_DIM + 1, dtype=th.float64)
        return (roll_out(start, actions, noise) - self.shift) / self.scale

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        alpha, sigma = self.path.coefficients(time[0].double())
        identity = th.eye(len(self.covariance), dtype=th.float64)
        gain = alpha * self.covariance @ th.linalg.inv(alpha**2 * self.covariance + sigma**2 * identity)
        mean = self.mean(start, actions).flatten(1)
        return (mean + (noisy.double().flatten(1) - alpha * mean) @ gain.T).view_as(noisy).to(noisy)


class StandardGaussianDenoiser(nn.Module):
    """Exact denoiser of segments that are standard Gaussian once standardised, whatever the start and the actions."""

    is_autoregressive = False

    def __init__(self, path: GaussianPath):
        super().__init__()
        self.path = path

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        alpha, sigma = self.path.coefficients(time[0])
        return alpha / (alpha**2 + sigma**2) * noisy


def exact_model(**changes: Any) -> DiffusionWorldModel:
    """World model with the exact denoiser, and normalisers that neither equal the identity nor ever clamp."""
    model = make_model(**changes)
    segments = linear_segments(5000, seeded())
    observe(model, segments)
    extreme = 50 * th.tensor([[-1.0], [1.0]])
    model.observe(extreme.expand(-1, OBSERVATION_DIM), extreme, extreme[:, 0], th.zeros(2))
    model.ema_networks["denoiser"] = ExactDenoiser(model)
    return model


# Theory: exact denoiser


@each_sampler
def test_imagination_with_the_exact_denoiser_follows_the_true_distribution(sampler: str) -> None:
    n_segments, n_steps = 4000, 100
    model = exact_model(sampler=sampler, n_denoising_steps=n_steps)
    start = th.tensor([0.7, -1.3]).expand(n_segments, -1)
    actions = th.tensor([[0.5], [-1.0], [2.0]]).expand(n_segments, -1, -1)
    imagined = model.imagine(start, lambda _, steps: actions[:, steps], generator=seeded())
    samples = th.cat([imagined.observations[:, 1:], imagined.rewards[..., None]], dim=-1).double()

    denoiser = model.ema_networks["denoiser"]
    mean = roll_out(start[:1], actions[:1], th.zeros(1, HORIZON, OBSERVATION_DIM + 1))[0]
    scale = denoiser.scale.repeat(HORIZON)
    covariance = scale[:, None] * denoiser.covariance * scale
    variances = covariance.diagonal()
    mean_error = (samples.mean(0) - mean).abs().flatten()
    covariance_error = (th.cov(samples.flatten(1).T) - covariance).abs()
    # Four standard errors, and a bias of first order in the length of a step
    assert (mean_error < 4 * (variances / n_segments).sqrt() + 1e-3).all()
    spread = variances[:, None] * variances
    assert (covariance_error < 4 * ((spread + covariance**2) / n_segments).sqrt() + 8 / n_steps * spread.sqrt()).all()


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
        imagined = model.imagine(start, lambda _, steps: actions[:, steps], guide, critic, scale, seeded(2))
        expected.append(critic.advantages(imagined).sum(1).mean().item())
    assert (th.tensor(expected).diff() > 0.01).all()


def test_reward_guidance_raises_the_expected_reward_monotonically() -> None:
    model = exact_model(n_denoising_steps=16)
    start = th.randn(500, OBSERVATION_DIM, generator=seeded())
    actions = th.randn(500, HORIZON, ACTION_DIM, generator=seeded(1))
    expected = []
    for scale in (0.0, 0.1, 0.2, 0.5, 1.0):
        imagined = model.imagine(start, lambda _, steps: actions[:, steps], RewardGuide(), linear_critic(), scale, seeded(2))
        expected.append(imagined.rewards.sum(1).mean().item())
    assert (th.tensor(expected).diff() > 0.01).all()


@pytest.mark.parametrize("advantage_std", [1.0, 5.0])
@each_sampler
def test_guidance_tilts_in_raw_units_as_the_closed_form_says(sampler: str, advantage_std: float) -> None:
    """
    A Gaussian of deviation ``scale`` reweighted by ``exp(c J)`` with a linear ``J`` moves by ``c scale^2 grad J``.
    For one transition and a linear critic, ``grad J = gamma v / advantage_std``.
    """
    model = make_model(horizon=1, sampler=sampler, n_denoising_steps=64)
    spread, n_data = th.tensor([0.1, 0.5]), 20_000
    data = 3 + spread * th.randn(n_data, OBSERVATION_DIM, generator=seeded())
    model.observe(data, th.zeros(n_data, ACTION_DIM), th.randn(n_data, generator=seeded()), th.zeros(n_data))
    model.ema_networks["denoiser"] = StandardGaussianDenoiser(model.path)
    start, scale = th.zeros(4000, OBSERVATION_DIM), 1.2
    imagined = [
        model.imagine(
            start, lambda s, _: s[..., :1], ExponentialAdvantageGuide(), linear_critic(advantage_std), c, seeded(1)
        ).observations[:, 1]
        for c in (0.0, scale)
    ]
    shift = imagined[1].mean(0) - imagined[0].mean(0)
    expected = scale * spread**2 * GAMMA * VALUE_WEIGHTS / advantage_std
    # The noise is the same in both; clamping, the estimate of the spread and the number of steps leave an error of
    # few percent
    assert th.allclose(shift, expected, rtol=0.05)
    assert th.allclose(imagined[1].std(0), imagined[0].std(0), rtol=0.02)


def test_sigmoid_guidance_moves_segments_less_than_exponential_guidance_where_advantages_are_high() -> None:
    model = exact_model(n_denoising_steps=16)
    start, actions = th.zeros(200, OBSERVATION_DIM), th.zeros(200, HORIZON, ACTION_DIM)

    def shift(guide: Guide, bonus: float) -> float:
        critic = Critic(lambda observations: observations @ VALUE_WEIGHTS, lambda rewards: rewards + bonus, GAMMA)
        unguided = model.imagine(start, lambda _, steps: actions[:, steps], generator=seeded())
        guided = model.imagine(start, lambda _, steps: actions[:, steps], guide, critic, 0.2, seeded())
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
    assert_equal(model.imagine(start, linear_policy, guide, linear_critic(), 0.0, seeded(1)), unguided)
    assert model.guidance_norm == 0
    model.imagine(start, linear_policy, guide, linear_critic(), 0.5, seeded(1))
    assert model.guidance_norm > 0


@each_guide
def test_start_state_is_returned_untouched_bit_for_bit(guide: Guide) -> None:
    model = exact_model()
    start = th.randn(20, OBSERVATION_DIM, generator=seeded()) * th.tensor([1e-3, 1e4]) + 1 / 3
    kept = start.clone()
    imagined = model.imagine(start, linear_policy, guide, linear_critic(), 100.0, seeded(1))
    assert th.equal(imagined.observations[:, 0], kept)
    assert th.equal(start, kept)


def test_guide_works_at_the_clean_estimates_in_raw_units() -> None:
    seen = []

    class Spy(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            seen.append(segments.map(th.clone))
            return critic.advantages(segments).sum(1)

    model = exact_model(n_denoising_steps=64)
    start = th.full((50, OBSERVATION_DIM), 7.0)
    imagined = model.imagine(start, linear_policy, Spy(), linear_critic(), 1e-3, seeded())
    assert len(seen) == 63
    for segments in seen:
        assert th.equal(segments.observations[:, 0], start)
        assert segments.observations.shape == imagined.observations.shape
        assert segments.actions.shape == imagined.actions.shape
        assert segments.rewards.shape == segments.terminations.shape == segments.mask.shape == imagined.rewards.shape
    # Close to the end of the reverse process the clean estimate hardly differs from the result
    assert th.allclose(seen[-1].observations, imagined.observations, atol=0.1)
    assert th.allclose(seen[-1].rewards, imagined.rewards, atol=0.1)


def test_gradient_never_goes_through_the_denoiser() -> None:
    class Spy(nn.Module):
        is_autoregressive = False

        def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
            calls.append(th.is_grad_enabled() or noisy.requires_grad or actions.requires_grad)
            return self.inner(noisy, time, start, actions)

    calls: list[bool] = []
    model = exact_model(n_denoising_steps=6)
    spy = Spy()
    spy.inner = model.ema_networks["denoiser"]
    model.ema_networks["denoiser"] = spy
    value_net = nn.Linear(OBSERVATION_DIM, 1)
    critic = Critic(lambda observations: value_net(observations).squeeze(-1), lambda rewards: rewards, GAMMA)
    start = th.zeros(5, OBSERVATION_DIM)
    imagined = model.imagine(start, linear_policy, SigmoidAdvantageGuide(), critic, 1.0, seeded())
    assert calls == [False] * 6
    assert value_net.weight.grad is None
    assert not imagined.observations.requires_grad


def test_actions_are_those_of_the_policy_at_the_imagined_states() -> None:
    model = exact_model()
    start = th.randn(20, OBSERVATION_DIM, generator=seeded())
    for guide in (None, SigmoidAdvantageGuide()):
        imagined = model.imagine(start, linear_policy, guide, linear_critic(), 1.0, seeded(1))
        assert th.equal(imagined.actions, linear_policy(imagined.observations[:, :-1]))


def test_policy_is_asked_at_the_guided_states() -> None:
    asked, estimated = [], []

    class Spy(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            estimated.append(segments.observations.detach())
            return segments.observations.sum((1, 2))

    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        asked.append(states)
        return linear_policy(states)

    model = exact_model(n_denoising_steps=4)
    model.imagine(th.zeros(5, OBSERVATION_DIM), policy, Spy(), linear_critic(), 1.0, seeded())
    # Three of the four steps are guided; at the following ones, before the result, the policy sees what the guide made
    for before, after in zip(estimated, asked[2:7:2], strict=True):
        assert (after[:, 1:] > before[:, 1:-1]).all()


@pytest.mark.parametrize("n_denoising_steps", [1, 2, 4])
def test_recurrent_denoiser_asks_for_each_action_at_the_state_that_it_acts_on(n_denoising_steps: int) -> None:
    source = Recording()
    model = fitted(source, n_denoising_steps=n_denoising_steps)
    start = source.every_transition().observations[:200, 0]
    imagined = model.imagine(start, linear_policy, generator=seeded(1))
    # Given its actions, the same noise leads to the same states again: they fit together
    again = model.imagine(start, lambda _, steps: imagined.actions[:, steps], generator=seeded(1))
    th.testing.assert_close(again.observations, imagined.observations, atol=0.02 * imagined.observations.std().item(), rtol=0)


def test_a_number_of_particles_that_does_not_divide_the_start_states_is_refused() -> None:
    with pytest.raises(ValueError, match="`n_candidates` 4 must divide the number of start states, 6"):
        make_model().imagine(th.zeros(6, OBSERVATION_DIM), linear_policy, n_candidates=4)


@each_sampler
@each_network
def test_particles_differ_by_their_actions_alone(sampler: str, network: str) -> None:
    model = fitted(Recording(by_chance), sampler=sampler, network=network)
    start = th.randn(50, OBSERVATION_DIM, generator=seeded()).repeat_interleave(4, dim=0)
    actions = th.randn(50, HORIZON, ACTION_DIM, generator=seeded(2)).repeat_interleave(4, dim=0)
    actions[0] += 1.0
    imagined = model.imagine(start, lambda _, steps: actions[:, steps], generator=seeded(1), n_candidates=4)
    assert imagined.terminations.any()
    for field in dataclasses.fields(imagined):
        groups = getattr(imagined, field.name).unflatten(0, (50, 4))
        assert th.equal(groups[1:], groups[1:, :1].expand_as(groups[1:]))
    assert not th.equal(imagined.observations[0], imagined.observations[1])
    assert th.equal(imagined.observations[1], imagined.observations[2])


@each_sampler
def test_recurrent_denoiser_last_asks_the_policy_at_the_very_states_that_are_returned(sampler: str) -> None:
    asked: dict[int, th.Tensor] = {}
    n_calls = 0

    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        asked[steps.start] = states
        return linear_policy(states)

    source = Recording()
    start = source.every_transition().observations[:200, 0]
    imagined = fitted(source, sampler=sampler, n_denoising_steps=3).imagine(start, policy, generator=seeded(1))
    # Not once more for the actions that are returned
    assert n_calls == 3 * HORIZON
    for step in range(HORIZON):
        assert th.equal(asked[step].squeeze(1), imagined.observations[:, step])
        assert th.equal(imagined.actions[:, step], linear_policy(asked[step]).squeeze(1))


@each_guide
def test_guidance_of_any_strength_stays_near_the_observed_range(guide: Guide) -> None:
    source = Recording()
    model, data = fitted(source), source.every_transition()
    asked = []

    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        asked.append(states)
        return linear_policy(states)

    imagined = model.imagine(data.observations[:50, 0], policy, guide, linear_critic(), 1e9, seeded(1))
    states = (th.cat(asked, dim=1), data.observations)
    for values, observed in (states, (imagined.rewards, data.rewards)):
        width = observed.max() - observed.min()
        assert values.isfinite().all()
        assert values.min() > observed.min() - 0.2 * width
        assert values.max() < observed.max() + 0.2 * width


@pytest.mark.parametrize("horizon", [1, 2, 5])
@each_network
@each_sampler
def test_imagined_segments_have_the_documented_shapes(sampler: str, network: str, horizon: int) -> None:
    model = make_model(sampler=sampler, network=network, horizon=horizon, n_denoising_steps=3)
    imagined = model.imagine(th.zeros(7, OBSERVATION_DIM), linear_policy, generator=seeded())
    assert len(imagined) == 7
    assert imagined.observations.shape == (7, horizon + 1, OBSERVATION_DIM)
    assert imagined.actions.shape == (7, horizon, ACTION_DIM)
    assert imagined.rewards.shape == imagined.terminations.shape == imagined.mask.shape == (7, horizon)
    assert imagined.terminations.dtype == imagined.mask.dtype == th.bool


# Fitting


@each_network
def test_fit_learns_a_deterministic_linear_system(network: str) -> None:
    model = well_fitted(Recording(), network=network)
    errors = model.prediction_error(Recording(seed=5).segments(500), seeded(6))
    assert errors["states"].shape == errors["persistence"].shape == errors["rewards"].shape == (HORIZON,)
    assert (errors["states"] < 0.1 * errors["persistence"]).all()
    assert (errors["rewards"] < 0.1).all()


def test_fit_reports_losses_that_fall() -> None:
    model, source, updates = make_model(), Recording(by_chance), []
    observe(model, source.every_transition())

    def fit(gradient_steps: int) -> dict[str, float]:
        return model.fit(source, gradient_steps, 64, generator=seeded(), on_update=lambda: updates.append(1))

    first = fit(5)
    fit(100)
    last = fit(5)
    assert set(first) == {"denoising_loss", "termination_loss"}
    assert last["denoising_loss"] < 0.5 * first["denoising_loss"]
    assert len(updates) == 110


def test_fit_takes_a_new_learning_rate() -> None:
    model, source = make_model(), Recording(by_chance)
    before = {name: value.clone() for name, value in model.networks.state_dict().items()}
    model.fit(source, 1, 8, learning_rate=0.0, generator=seeded())
    assert all(th.equal(value, before[name]) for name, value in model.networks.state_dict().items())
    model.fit(source, 1, 8, learning_rate=1e-2, generator=seeded())
    assert not all(th.equal(value, before[name]) for name, value in model.networks.state_dict().items())


def test_fit_of_no_updates_changes_nothing() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = model.fit(Recording(), 0, 8, generator=seeded())
    assert losses == {"denoising_loss": 0.0, "termination_loss": 0.0}
    assert all(th.equal(value, before[name]) for name, value in model.state_dict().items())


class Constant:
    """
    Always the same segments.

    :param drawn: The segments
    """

    termination_rate = 0.0

    def __init__(self, drawn: Segments):
        self.drawn = drawn

    def segments(self, n_segments: int) -> Segments:
        return self.drawn

    def terminal_transitions(self, n_transitions: int) -> Segments:
        raise NotImplementedError("There are none")


class Rescaled(Recording):
    """The linear system in other units, with a third dimension that never changes."""

    def cut(self, starts: th.Tensor, horizon: int) -> Segments:
        segments = super().cut(starts, horizon)
        states = segments.observations * th.tensor([1e6, 1e-6]) + th.tensor([1e6, 0.0])
        return dataclasses.replace(
            segments,
            observations=th.cat([states, th.full_like(states[..., :1], 0.1)], dim=-1),
            actions=segments.actions * 1e3,
            rewards=segments.rewards * 1e6,
        )


def test_constant_dimensions_and_extreme_scales_are_learned_alike() -> None:
    model = well_fitted(Rescaled(), observation_dim=3)
    held_out = Rescaled(seed=5).segments(500)
    errors = model.prediction_error(held_out, seeded(6))
    assert (errors["states"] < 0.2 * errors["persistence"]).all()
    assert (errors["rewards"] < 0.2).all()
    imagined = model.imagine(held_out.observations[:, 0], lambda _, steps: held_out.actions[:, steps], generator=seeded(7))
    assert th.allclose(imagined.observations[..., 2], th.tensor(0.1))


def test_what_lies_behind_the_end_of_a_segment_does_not_change_the_loss() -> None:
    model = randomised(make_model(network="recurrent"))
    segments = Recording(by_chance).segments(50)
    mask = segments.mask
    assert not mask.all()
    reached = th.cat([th.ones(len(mask), 1, dtype=th.bool), mask], dim=1)[..., None]
    changed = dataclasses.replace(
        segments,
        observations=th.where(reached, segments.observations, 5.0),
        actions=th.where(mask[..., None], segments.actions, -3.0),
        rewards=th.where(mask, segments.rewards, 9.0),
    )
    losses = [model.denoising_loss(s, seeded(3)).item() for s in (segments, changed)]
    assert losses[0] == pytest.approx(losses[1])


def test_what_lies_behind_the_end_of_a_segment_does_not_count_as_an_error() -> None:
    model, real = fitted(Recording(by_chance)), Recording(by_chance, seed=5).segments(50)
    imagined = model.predict(real.observations[:, 0], real.actions, seeded(6))
    reached = th.cat([th.ones(len(real), 1, dtype=th.bool), real.mask], dim=1)[..., None]
    assert not real.mask.all()
    changed = dataclasses.replace(
        real,
        observations=th.where(reached, real.observations, 1e3),
        rewards=th.where(real.mask, real.rewards, -1e3),
    )
    for name, error in model.compare(imagined, real).items():
        assert th.allclose(model.compare(imagined, changed)[name], error, equal_nan=True), name


def test_high_noise_levels_are_learned_more_often_than_low_ones() -> None:
    """As the square root of a uniform number: at high levels the states must come from the dynamics alone."""
    levels = []

    class Listening(ResidualMLPDenoiser):
        def forward(self, noisy: th.Tensor, time: th.Tensor, *rest: Any) -> th.Tensor:
            levels.append(time)
            return super().forward(noisy, time, *rest)

    fitted(Recording(), 50, network=Listening)
    drawn = th.cat(levels).sort().values
    assert len(drawn) == 50 * 64
    # The largest distance of the two distribution functions is beyond this with a probability of 1e-5
    assert (drawn.square() - (th.arange(len(drawn)) + 0.5) / len(drawn)).abs().max() < 2.5 / len(drawn) ** 0.5


def test_gradients_of_the_world_model_are_clipped() -> None:
    model, segments = make_model(), Recording().segments(64)
    # Nothing is standardised yet: such rewards are far from what networks put out
    model.fit(Constant(dataclasses.replace(segments, rewards=segments.rewards * 1e3)), 1, 64, generator=seeded())
    gradients = [parameter.grad for parameter in model.networks["denoiser"].parameters() if parameter.grad is not None]
    assert th.stack([gradient.norm() for gradient in gradients]).norm().item() == pytest.approx(1, rel=1e-4)


def test_a_quarter_more_transitions_than_segments_are_terminal_ones() -> None:
    source, asked = Recording(by_chance), []

    def terminal_transitions(n_transitions: int) -> Segments:
        asked.append(n_transitions)
        return Recording.terminal_transitions(source, n_transitions)

    source.terminal_transitions = terminal_transitions  # type: ignore[method-assign]
    for batch_size in (64, 1):
        make_model().fit(source, 1, batch_size, generator=seeded())
    assert asked == [16, 1]


@pytest.mark.parametrize(
    ("network", "horizon", "length"), [("recurrent", 8, 4), ("recurrent", 6, 2), ("recurrent", 5, 1), ("mlp", 6, 6)]
)
def test_the_recurrent_denoiser_is_put_back_to_the_true_state_every_few_steps(
    network: str, horizon: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = make_model(network=network, horizon=horizon), Recording(by_chance)
    observe(model, source.every_transition())
    segments = source.cut(source.starts[:10], horizon)
    seen: list[th.Tensor] = []
    forward = model.networks["denoiser"].forward
    monkeypatch.setattr(model.networks["denoiser"], "forward", lambda *inputs: seen.extend(inputs) or forward(*inputs))
    model.denoising_loss(segments, seeded())
    noisy, times, starts, actions = seen
    n_walks = horizon // length
    assert noisy.shape[:2] == actions.shape[:2] == (10 * n_walks, length)
    true_states = model.observation_normalizer(segments.observations[:, :-1])[:, ::length]
    assert th.allclose(starts.view(10, n_walks, -1), true_states)
    assert th.allclose(actions.view(10, horizon, -1), model.action_normalizer(segments.actions))
    # Those of a segment have the same level of noise
    assert th.equal(times.view(10, n_walks), times.view(10, n_walks)[:, :1].expand(-1, n_walks))


# Terminations


@each_network
@pytest.mark.parametrize("rule", [beyond_limit, by_chance], ids=["limit", "chance"])
def test_terminations_are_imagined_at_the_real_rate(rule: Rule, network: str) -> None:
    model = well_fitted(Recording(rule), 500, network=network)
    held_out = Recording(rule, seed=5).segments(5000)
    # Segments that the end of the recording cut off say nothing about how long they would have gone on
    whole = held_out.mask.all(1) | held_out.terminations.any(1)
    real = held_out.map(lambda array: array[whole])
    imagined = model.imagine(real.observations[:, 0], lambda _, steps: real.actions[:, steps], generator=seeded(6))
    real_rate = real.terminations[real.mask].float().mean().item()
    imagined_rate = imagined.terminations[imagined.mask].float().mean().item()
    assert 0.01 < real_rate < 0.1
    assert real_rate / 1.25 < imagined_rate < real_rate * 1.25


def test_terminations_are_imagined_where_the_real_rule_ends_the_episode() -> None:
    model = well_fitted(Recording(beyond_limit), 500)
    real = Recording(beyond_limit, seed=5).segments(5000)
    imagined = model.imagine(real.observations[:, 0], lambda _, steps: real.actions[:, steps], generator=seeded(6))
    over = (imagined.observations[:, 1:, 0] > 1.2)[imagined.mask]
    terminated = imagined.terminations[imagined.mask]
    assert terminated[over].float().mean() > 0.7
    assert terminated[~over].float().mean() < 0.02


class FewFalls:
    """
    Transitions of 17 dimensions, one in 44 terminal by the first one.

    :param n_transitions: Number of transitions
    :param seed: Seed
    """

    def __init__(self, n_transitions: int, seed: int):
        self.generator = seeded(seed)
        self.states = th.randn(n_transitions, 2, 17, generator=self.generator)
        self.terminations = self.states[:, 1:, 0] > 2
        self.terminal = self.terminations.flatten().nonzero().flatten()
        self.termination_rate = len(self.terminal) / n_transitions

    def _segments(self, rows: th.Tensor) -> Segments[th.Tensor]:
        zeros, always = th.zeros(len(rows), 1), th.ones(len(rows), 1, dtype=th.bool)
        return Segments(self.states[rows], zeros[..., None], zeros, self.terminations[rows], always)

    def segments(self, n_segments: int) -> Segments[th.Tensor]:
        return self._segments(th.randint(len(self.states), (n_segments,), generator=self.generator))

    def terminal_transitions(self, n_transitions: int) -> Segments[th.Tensor]:
        drawn = th.randint(len(self.terminal), (n_transitions,), generator=self.generator)
        return self._segments(self.terminal[drawn])


def test_few_terminal_transitions_are_not_learned_by_heart() -> None:
    """Cross-entropy on new transitions: worse than that of the mere rate if they are."""
    known, new = FewFalls(2_000, seed=0), FewFalls(20_000, seed=1)
    model = DiffusionWorldModel(17, 1, horizon=1, width=16, depth=1, seed=0)
    actions = th.zeros(len(known.states), 1)
    model.observe(known.states[:, 1], actions, actions.flatten(), known.terminations.flatten())
    model.fit(known, 1_000, 128, generator=seeded())
    probabilities = model._termination_probabilities(new.states, th.zeros(len(new.states), 1, 1))
    targets = new.terminations.float()
    mere_rate = th.full_like(targets, targets.mean().item())
    cross_entropy = nn.functional.binary_cross_entropy
    assert cross_entropy(probabilities, targets) < 0.8 * cross_entropy(mere_rate, targets)


def test_prediction_error_compares_the_rates_of_termination() -> None:
    model = well_fitted(Recording(beyond_limit), 500)
    errors = model.prediction_error(Recording(beyond_limit, seed=5).segments(5000), seeded(6))
    assert errors["imagined_terminations"].item() == pytest.approx(errors["real_terminations"].item(), rel=0.25)


def test_segments_cut_off_by_the_end_of_the_data_do_not_lower_the_real_rate_of_termination() -> None:
    source = Recording(beyond_limit)
    model, segments = fitted(source), source.segments(2000)
    cut = segments.mask.sum(1) < HORIZON
    cut &= ~segments.terminations.any(1)
    assert cut.any()
    whole = segments.map(lambda array: array[~cut])
    rates = [model.prediction_error(s, seeded())["real_terminations"].item() for s in (segments, whole)]
    assert rates[0] == rates[1] == pytest.approx(whole.terminations[whole.mask].float().mean().item())


def test_first_step_is_judged_even_where_no_segment_reaches_the_horizon() -> None:
    errors = fitted(Recording(at_once)).prediction_error(Recording(at_once, seed=5).segments(50), seeded(6))
    assert errors["states"][0].isfinite()
    assert errors["imagined_terminations"].isfinite()
    assert errors["real_terminations"] == 1


def test_no_termination_is_imagined_before_one_was_seen() -> None:
    model = fitted(Recording(never))
    # Even if the classifier would call every transition terminal
    with th.no_grad():
        for parameter in model.ema_networks["termination"].parameters():
            parameter.fill_(10.0)
    imagined = model.imagine(th.zeros(500, OBSERVATION_DIM), linear_policy, generator=seeded())
    assert not imagined.terminations.any()
    assert imagined.mask.all()


def test_a_loaded_model_imagines_the_terminations_of_the_saved_one() -> None:
    model, other = fitted(Recording(by_chance)), fitted(Recording(never))
    other.load_state_dict(model.state_dict())
    start = th.randn(500, OBSERVATION_DIM, generator=seeded())
    imagined, again = (one.imagine(start, linear_policy, generator=seeded(1)) for one in (model, other))
    assert imagined.terminations.any() and th.equal(imagined.terminations, again.terminations)


def test_user_given_rule_of_termination_replaces_the_model() -> None:
    received = []

    def rule(observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        assert observations.shape == next_observations.shape == (len(actions), OBSERVATION_DIM)
        assert actions.shape[1:] == (ACTION_DIM,)
        received.append((observations, actions, next_observations))
        return next_observations[:, 0] > 0

    model = fitted(Recording(by_chance), termination_fn=rule)
    start = th.randn(50, OBSERVATION_DIM, generator=seeded())
    imagined = model.imagine(start, linear_policy, SigmoidAdvantageGuide(), linear_critic(), 1.0, seeded(1))
    above = imagined.observations[:, 1:, 0] > 0
    assert th.equal(imagined.terminations[imagined.mask], above[imagined.mask])
    assert imagined.terminations.any()
    assert th.equal(imagined.mask, mask_after_termination(above))
    observations, actions, next_observations = received[-1]
    assert np.array_equal(observations, imagined.observations[:, :-1].reshape(-1, OBSERVATION_DIM))
    assert np.array_equal(actions, imagined.actions.reshape(-1, ACTION_DIM))
    assert np.array_equal(next_observations, imagined.observations[:, 1:].reshape(-1, OBSERVATION_DIM))


@pytest.mark.parametrize("outcome", [np.zeros((150, 1)), np.zeros(3), True], ids=["column", "few", "scalar"])
def test_rule_of_termination_of_a_wrong_shape_is_refused(outcome: Any) -> None:
    model = make_model(termination_fn=lambda *_: outcome)
    with pytest.raises(ValueError, match="termination_fn"):
        model.imagine(th.zeros(50, OBSERVATION_DIM), linear_policy, generator=seeded())


def test_mask_of_imagined_segments_is_true_up_to_and_including_the_first_termination() -> None:
    draws = np.random.default_rng(0)
    model = make_model(horizon=5, termination_fn=lambda observations, *_: draws.random(len(observations)) < 0.3)
    imagined = model.imagine(th.zeros(200, OBSERVATION_DIM), linear_policy, generator=seeded())
    for terminations, mask in zip(imagined.terminations.tolist(), imagined.mask.tolist(), strict=True):
        n_valid = terminations.index(True) + 1 if True in terminations else 5
        assert mask == [True] * n_valid + [False] * (5 - n_valid)


# Networks


def denoiser_inputs(horizon: int) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    generator = seeded()
    return (
        th.randn(4, horizon, OBSERVATION_DIM + 1, generator=generator),
        th.rand(4, generator=generator),
        th.randn(4, OBSERVATION_DIM, generator=generator),
        th.randn(4, horizon, ACTION_DIM, generator=generator),
    )


def randomised(network: nn.Module) -> nn.Module:
    """Zeros among the initial weights would hide dependencies."""
    generator = seeded()
    with th.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * th.randn(parameter.shape, generator=generator))
    return network


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


def test_untrained_recurrent_denoiser_says_that_persistence() -> None:
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


def test_setting_of_the_paper_works() -> None:
    model = make_model(
        observation_dim=11,
        action_dim=3,
        horizon=10,
        sampler="ddpm",
        n_denoising_steps=128,
        network="mlp",
        width=1024,
        depth=6,
    )
    segments = Segments(
        observations=th.randn(8, 11, 11, generator=seeded()),
        actions=th.randn(8, 10, 3, generator=seeded()),
        rewards=th.randn(8, 10, generator=seeded()),
        terminations=th.zeros(8, 10, dtype=th.bool),
        mask=th.ones(8, 10, dtype=th.bool),
    )
    observe(model, segments)

    class Source:
        termination_rate = 1 / 80

        def segments(self, n_segments: int) -> Segments:
            return segments

        def terminal_transitions(self, n_transitions: int) -> Segments:
            return Segments(
                observations=segments.observations[:1, -2:],
                actions=segments.actions[:1, -1:],
                rewards=segments.rewards[:1, -1:],
                terminations=segments.terminations[:1, -1:],
                mask=segments.mask[:1, -1:],
            )

    segments.terminations[0, -1] = True
    losses = model.fit(Source(), 1, 8, generator=seeded())
    assert np.isfinite(list(losses.values())).all()
    critic = Critic(lambda observations: observations.sum(-1), lambda rewards: rewards, GAMMA)
    imagined = model.imagine(
        segments.observations[:3, 0], lambda states, _: states[..., :3], SigmoidAdvantageGuide(), critic, 3.0, seeded()
    )
    assert imagined.observations.shape == (3, 11, 11)
    assert imagined.observations.isfinite().all()
    assert imagined.rewards.isfinite().all()


# Reproducibility


@each_network
def test_same_seed_gives_the_same_weights_and_the_same_imagination(network: str) -> None:
    start = th.randn(20, OBSERVATION_DIM, generator=seeded())
    models, imagined = [], []
    for _ in range(2):
        th.manual_seed(np.random.randint(1000))
        model = fitted(Recording(by_chance), network=network)
        models.append(model.state_dict())
        imagined.append(model.imagine(start, linear_policy, SigmoidAdvantageGuide(), linear_critic(), 1.0, seeded(1)))
    assert models[0].keys() == models[1].keys()
    assert all(th.equal(models[0][name], models[1][name]) for name in models[0])
    assert_equal(*imagined)


def test_different_seeds_give_different_weights() -> None:
    first, second, unseeded, other_unseeded = (
        make_model(seed=seed).networks["denoiser"].input.weight for seed in (0, 1, None, None)
    )
    assert not th.equal(first, second)
    assert not th.equal(unseeded, other_unseeded)


@pytest.mark.parametrize("sampler", ["flow", "ddpm"])
@pytest.mark.parametrize("seed", [0, None])
def test_global_random_states_are_left_untouched(seed: int | None, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    th.manual_seed(123)
    np.random.seed(123)
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state()
    # Those of GPUs as well
    monkeypatch.setattr(th.cuda, "manual_seed_all", lambda _: pytest.fail("GPUs were seeded"))
    model = fitted(Recording(by_chance), seed=seed, sampler=sampler)
    start = th.zeros(5, OBSERVATION_DIM)
    model.imagine(start, linear_policy, SigmoidAdvantageGuide(), linear_critic(), 1.0, seeded())
    model.prediction_error(Recording(seed=5).segments(5), seeded())
    assert th.equal(th.get_rng_state(), torch_state)
    for before, after in zip(numpy_state, np.random.get_state(), strict=True):
        assert np.array_equal(before, after)


@each_network
def test_state_dict_round_trip_gives_the_same_imagination(network: str) -> None:
    model = fitted(Recording(by_chance), network=network)
    twin = make_model(network=network, seed=99)
    twin.load_state_dict(model.state_dict())
    start = th.randn(200, OBSERVATION_DIM, generator=seeded())
    guide, critic = SigmoidAdvantageGuide(), linear_critic()
    imagined = [m.imagine(start, linear_policy, guide, critic, 1.0, seeded(1)) for m in (model, twin)]
    assert imagined[0].terminations.any()
    assert_equal(*imagined)


def test_restored_model_goes_on_learning_as_if_never_interrupted() -> None:
    model = fitted(Recording(by_chance))
    twin = make_model(seed=99)
    twin.load_state_dict(model.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(model.optimizer.state_dict()))
    for m in (model, twin):
        source = Recording(by_chance, seed=3)
        observe(m, source.every_transition())
        m.fit(source, 3, 16, generator=seeded(3))
    assert all(th.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_imagination_uses_the_running_mean_of_the_weights() -> None:
    model = fitted(Recording(by_chance))
    start = th.zeros(5, OBSERVATION_DIM)
    before = model.imagine(start, linear_policy, generator=seeded())
    randomised(model.networks)
    assert_equal(model.imagine(start, linear_policy, generator=seeded()), before)
    randomised(model.ema_networks)
    assert not th.equal(model.imagine(start, linear_policy, generator=seeded()).observations, before.observations)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_running_mean_follows_the_weights(ema_decay: float) -> None:
    source, model = Recording(by_chance), make_model(ema_decay=ema_decay)
    observe(model, source.every_transition())
    expected = [parameter.clone() for parameter in model.ema_networks.parameters()]

    def follow() -> None:
        n_updates = int(model.n_updates)
        decay = min(ema_decay, n_updates / (n_updates + 10))
        for mean, weight in zip(expected, model.networks.parameters(), strict=True):
            mean.mul_(decay).add_((1 - decay) * weight.detach())

    model.fit(source, 20, 16, generator=seeded(), on_update=follow)
    for mean, ours, weight in zip(expected, model.ema_networks.parameters(), model.networks.parameters(), strict=True):
        assert th.allclose(mean, ours, atol=1e-6)
        assert th.equal(ours, weight) == (ema_decay == 0)


def test_world_model_works_without_the_agent_and_its_libraries() -> None:
    modules = sorted(Path(inspect.getfile(DiffusionWorldModel)).parent.glob("*.py"))
    imports = [line.strip() for module in modules for line in module.read_text().splitlines() if "import" in line.split()]
    assert any(line.startswith("import torch") for line in imports)
    for foreign in ("stable_baselines3", "gymnasium", "sb3_contrib", "agdppo"):
        assert not any(foreign in line for line in imports)


# Errors


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("horizon", 0),
        ("horizon", -1),
        ("horizon", 2.5),
        ("horizon", "8"),
        ("n_denoising_steps", 0),
        ("n_denoising_steps", 1.0),
        ("width", 0),
        ("width", None),
        ("depth", 0),
        ("depth", -3),
        ("network", "transformer"),
        ("network", int),
        ("network", nn.Identity()),
        ("sampler", "euler"),
        ("sampler", None),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("ema_decay", "a"),
        ("sampler", ["flow"]),
        ("ema_decay", float("nan")),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("termination_fn", True),
    ],
)
def test_bad_argument_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make_model(**{argument: value})


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_guidance_scale_is_refused_by_name(scale: float) -> None:
    with pytest.raises(ValueError, match="`guidance_scale`"):
        make_model().imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, RewardGuide(), linear_critic(), scale, seeded())


def test_a_guide_without_a_denoising_step_to_guide_is_refused() -> None:
    model = make_model(n_denoising_steps=1)
    with pytest.raises(ValueError, match="`n_denoising_steps` must be at least 2"):
        model.imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, RewardGuide(), linear_critic(), 1.0, seeded())
    # Nothing is to be moved
    model.imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, RewardGuide(), linear_critic(), 0.0, seeded())


def test_guide_without_a_critic_is_refused() -> None:
    with pytest.raises(ValueError, match="`critic`"):
        make_model().imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, RewardGuide(), None, 1.0, seeded())


@pytest.mark.parametrize("argument", ["sampler", "network"])
def test_error_lists_the_choices(argument: str) -> None:
    choices = {"sampler": ("flow", "ddim", "ddpm"), "network": ("recurrent", "mlp")}[argument]
    with pytest.raises(ValueError) as error:
        make_model(**{argument: "unknown"})
    assert all(repr(choice) in str(error.value) for choice in choices)


# Standardisation


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


class WithDropout(ResidualMLPDenoiser):
    """Has layers that behave differently in training."""

    def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int, depth: int):
        super().__init__(observation_dim, action_dim, horizon, width, depth)
        self.blocks.append(nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5)))


def test_layers_that_behave_differently_in_training_do_so() -> None:
    def train_and_imagine() -> Segments[th.Tensor]:
        model = fitted(Recording(), 20, network=WithDropout)
        ours, means = (networks["denoiser"].blocks[-1][1] for networks in (model.networks, model.ema_networks))
        assert ours.num_batches_tracked == 20
        assert th.equal(ours.running_mean, means.running_mean) and ours.running_mean.any()
        alone = linear_segments(1, seeded())
        return model.predict(alone.observations[:, 0], alone.actions, seeded())

    th.manual_seed(7)
    before = th.get_rng_state()
    first = train_and_imagine()
    assert th.equal(th.get_rng_state(), before)
    th.manual_seed(8)
    assert_equal(first, train_and_imagine())


def test_fits_without_a_generator_draw_different_noise() -> None:
    model, levels = make_model(), []
    source = Recording()
    observe(model, source.every_transition())
    add_noise = model.path.add_noise
    model.path.add_noise = lambda clean, noise, time: levels.append(time) or add_noise(clean, noise, time)
    for _ in range(2):
        model.fit(source, 1, 8)
    assert not th.equal(*levels)

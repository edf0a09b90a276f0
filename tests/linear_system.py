"""A linear system whose laws are known, world models of it, and the exact denoiser, for the tests of the world model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.imagination import Critic, Guide
from sb3_agd.imagination.guides import GUIDES
from sb3_agd.world_model import DiffusionWorldModel, Segments
from sb3_agd.world_model.samplers import SAMPLERS
from sb3_agd.world_model.schedules import Schedule
from sb3_agd.world_model.segments import mask_after_termination

OBSERVATION_DIM, ACTION_DIM, HORIZON = 2, 1, 3
GAMMA = 0.9
# Laws of the linear system: s' = s @ TRANSITION + a @ CONTROL (+ noise), r = s' @ REWARD_WEIGHTS (+ noise)
TRANSITION = th.tensor([[0.9, 0.2], [-0.2, 0.9]])
CONTROL = th.tensor([[0.3, 0.5]])
REWARD_WEIGHTS = th.tensor([1.0, -0.5])
NOISE_STD = 0.3
VALUE_WEIGHTS = th.tensor([2.0, 1.0])

each_sampler = pytest.mark.parametrize("sampler", sorted(SAMPLERS))
each_network = pytest.mark.parametrize("network", ["recurrent", "mlp"])
each_guide = pytest.mark.parametrize("guide", [guide() for guide in GUIDES.values()], ids=list(GUIDES))
Rule = Callable[[th.Tensor, th.Generator], th.Tensor]


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
        observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM, horizon=HORIZON, network_kwargs={"width": 16}, seed=0
    )
    return DiffusionWorldModel(**{**kwargs, **changes})


def fitted(source: Any, gradient_steps: int = 5, **changes: Any) -> DiffusionWorldModel:
    model = make_model(**changes)
    observe(model, source.every_transition())
    model.fit(source, gradient_steps, batch_size=64, generator=seeded())
    return model


def well_fitted(source: Any, gradient_steps: int = 400, **changes: Any) -> DiffusionWorldModel:
    return fitted(source, gradient_steps, network_kwargs={"width": 64}, learning_rate=3e-3, ema_decay=0.98, **changes)


def linear_policy(states: th.Tensor, steps: slice | None = None) -> th.Tensor:
    return states.sum(-1, keepdim=True).tanh()


def linear_critic(advantage_std: float = 1.0) -> Critic:
    return Critic(lambda observations: observations @ VALUE_WEIGHTS, lambda rewards: rewards, GAMMA, advantage_std)


def objective_of(guide: Guide, critic: Critic) -> Callable[[Segments], th.Tensor]:
    """The guide's objective with a critic, as the world model takes it."""
    return partial(guide.checked_objective, critic=critic)


def assert_equal(first: Segments, second: Segments) -> None:
    for name in ("observations", "actions", "rewards", "terminations", "mask"):
        assert th.equal(getattr(first, name), getattr(second, name)), name


def randomised(network: nn.Module) -> nn.Module:
    """Zeros among the initial weights would hide dependencies."""
    generator = seeded()
    with th.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * th.randn(parameter.shape, generator=generator))
    return network


class ExactDenoiser(nn.Module):
    """
    Posterior mean of the linear system's next states and rewards given their noisy version, the start state and the
    actions.

    The standardised segment ``x`` is Gaussian, its mean affine in start and actions, its covariance constant, so
    that the posterior mean is the regression ``mean + alpha S (alpha^2 S + sigma^2 I)^-1 (x_t - alpha mean)``.

    :param model: The world model whose normalisers and schedule it works with
    :param horizon: Number of transitions
    """

    is_autoregressive = False

    def __init__(self, model: DiffusionWorldModel, horizon: int = HORIZON):
        super().__init__()
        self.schedule: Schedule = model.schedule
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
        alpha, sigma = self.schedule.coefficients(time[0].double())
        identity = th.eye(len(self.covariance), dtype=th.float64)
        gain = alpha * self.covariance @ th.linalg.inv(alpha**2 * self.covariance + sigma**2 * identity)
        mean = self.mean(start, actions).flatten(1)
        return (mean + (noisy.double().flatten(1) - alpha * mean) @ gain.T).view_as(noisy).to(noisy)


class GaussianDenoiser(nn.Module):
    """
    Exact denoiser of segments whose numbers are independent and Gaussian with mean 0, whatever the start and the actions.

    :param schedule: Noise schedule
    :param variance: Variance of the standardised numbers
    """

    is_autoregressive = False

    def __init__(self, schedule: Schedule, variance: float):
        super().__init__()
        self.schedule = schedule
        self.variance = variance

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        alpha, sigma = self.schedule.coefficients(time[0])
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * noisy


def exact_model(**changes: Any) -> DiffusionWorldModel:
    """World model with the exact denoiser, and normalisers that neither equal the identity nor ever clamp."""
    model = make_model(**changes)
    segments = linear_segments(5000, seeded())
    observe(model, segments)
    extreme = 50 * th.tensor([[-1.0], [1.0]])
    model.observe(extreme.expand(-1, OBSERVATION_DIM), extreme, extreme[:, 0], th.zeros(2))
    model.ema_networks["denoiser"] = ExactDenoiser(model)
    return model


def prediction_errors(model: DiffusionWorldModel, real: Segments, generator: th.Generator) -> dict[str, th.Tensor]:
    """Errors of what a world model predicts for the start states and actions of real segments."""
    return segment_errors(model, model.predict(real.observations[:, 0], real.actions, generator), real)

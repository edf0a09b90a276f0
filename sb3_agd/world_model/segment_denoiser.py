"""The denoiser that samplers call when segments are imagined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch as th
from torch.nn import functional as F

from sb3_agd.world_model.denoisers import StandardisedPolicy, is_autoregressive
from sb3_agd.world_model.samplers import Sampler, posterior_variance
from sb3_agd.world_model.segments import Segments, mask_after_termination
from sb3_agd.world_model.validation import check_choice

if TYPE_CHECKING:
    from sb3_agd.world_model.world_model import DiffusionWorldModel

# Lowest ratio of signal and noise at which the derivative of the denoiser is used
MIN_SIGNAL = 0.25
# Actions at imagined states, both in raw units: states (B, n, observation_dim), and which n steps of the segment they
# belong to -> (B, n, action_dim). If it has a method `begin_step`, that is called with the time of each step of the sampler,
# where segments are sampled as a whole
Policy = Callable[[th.Tensor, slice], th.Tensor]
# What guidance raises: one number per segment, shape (B,), differentiable in observations and rewards
Objective = Callable[[Segments[th.Tensor]], th.Tensor]
GUIDANCE_WEIGHTS = ("calibrated", "sigma4")


@dataclass(eq=False)
class SegmentDenoiser:
    """
    The network of a world model with start states, a policy and perhaps guidance, as a function of the noisy segment and its
    time alone.

    :param model: The world model
    :param start: Start states in raw units, shape (B, observation_dim)
    :param horizon: Number of transitions
    :param policy: Actions at imagined states
    :param objective: Objective that the denoised segments are moved to raise, ``None`` for no guidance
    :param guidance_scale: Strength of the guidance
    :param guidance_weight: Weight of the gradient
    """

    model: DiffusionWorldModel
    start: th.Tensor
    horizon: int
    policy: Policy
    objective: Objective | None = None
    guidance_scale: float = 0.0
    guidance_weight: str = "calibrated"

    def __post_init__(self) -> None:
        check_choice("guidance_weight", self.guidance_weight, GUIDANCE_WEIGHTS)
        model, start = self.model, self.start
        self.network = model.ema_networks["denoiser"]
        self._guided = self._weighted_by_sigma if self.guidance_weight == "sigma4" else self._calibrated
        self._begin_step = getattr(self.policy, "begin_step", None)
        # No start state is terminal
        self.standardised_start = F.pad(model.inputs(start), (0, model.n_flags), value=-1.0)
        # Lowest and highest denoised values. Computed once for all passes
        flags = start.new_ones(model.n_flags)
        bounds = model.observation_normalizer.bounds, (-flags, flags), model.reward_normalizer.bounds
        self.low, self.high = (th.cat(part) for part in zip(*bounds, strict=True))
        # Those of the newest pass, in raw units
        self.actions = start.new_empty(len(start), self.horizon, model.action_dim)
        # The denoised segments of the newest pass
        self.denoised: th.Tensor | None = None

    def __call__(self, noisy: th.Tensor, time: float) -> th.Tensor:
        """
        :param noisy: Noisy segments, shape (B, H, observation_dim + n_flags + 1)
        :param time: Noise level between 0 and 1
        :return: Denoised, within the observed range plus a margin, same shape
        """
        if self._begin_step is not None:
            self._begin_step(time)
        self.denoised = self._denoise(noisy, time) if self.objective is None else self._guided(noisy, time)
        return self.denoised

    def sample_state_by_state(self, sampler: Sampler, n_steps: int, draw_noise: Callable[[int], th.Tensor]) -> th.Tensor:
        """
        Sample each next state and reward by itself, given the state sampled before it and the policy's action there. Estimates
        of whole segments do not depend on later noise, so that segments sampled as a whole are wrong in stochastic worlds:
        of a random walk, the increments would be anticorrelated. The network must be autoregressive.

        :param sampler: The sampler
        :param n_steps: Its number of steps
        :param draw_noise: Draws noise for a number of transitions, shape (B, n, observation_dim + n_flags + 1)
        :return: Samples, shape (B, H, observation_dim + n_flags + 1)
        """
        state, sampled = self.standardised_start, []
        for step in range(self.horizon):
            action = self._act(state[:, None], slice(step, step + 1))
            denoise = partial(self._estimate, state, action)
            sampled.append(sampler(denoise, draw_noise(1), n_steps, partial(draw_noise, 1)))
            state = sampled[-1][:, 0, :-1]
        return th.cat(sampled, dim=1)

    def _denoise(self, noisy: th.Tensor, time: float) -> th.Tensor:
        """:meth:`__call__` without guidance, differentiable in the noisy segments. Actions are constants."""
        if is_autoregressive(self.network):
            return self._estimate(self.standardised_start, self._act, noisy, time)
        self._act_everywhere()
        return self._estimate(self.standardised_start, self.model.action_normalizer(self.actions), noisy, time)

    def _estimate(self, start: th.Tensor, actions: th.Tensor | StandardisedPolicy, noisy: th.Tensor, time: float) -> th.Tensor:
        """What the network makes of noisy segments, within the observed range plus a margin."""
        times = th.full((len(noisy),), time, device=noisy.device)
        return self.network(noisy, times, start, actions).clamp(self.low, self.high)

    def _weighted_by_sigma(self, noisy: th.Tensor, time: float) -> th.Tensor:
        """
        As in the paper's public code: the denoised segment moves by the gradient at itself, times the fourth power of the
        posterior standard deviation of an ancestral step. In the last step, that is 0. See :meth:`_calibrated`.
        """
        now = th.tensor(time, dtype=th.float64)
        variance = posterior_variance(self.model.schedule, now, (now - 1 / self.model.n_denoising_steps).clamp(min=0)).item()
        leaf = self._denoise(noisy, time).detach().requires_grad_()
        with th.enable_grad():
            gradient = self._objective_gradient(leaf, leaf)
        return (leaf.detach() + self.guidance_scale * variance**2 * gradient).clamp(self.low, self.high)

    def _calibrated(self, noisy: th.Tensor, time: float) -> th.Tensor:
        """
        The denoised sample is the mean of the data given the noisy sample. If the data are reweighted by
        ``exp(scale * J)``, this mean moves by ``scale * covariance * grad J`` for linear ``J``, with the covariance of the
        data given the noisy sample. By Tweedie's formula it is ``sigma^2 / alpha`` times the derivative of the denoised
        sample with respect to the noisy one, so that the shift is the gradient of ``J`` through the denoiser
        (arXiv 2209.14687). For Gaussian data, the outcome has the reweighted mean with any sampler.

        :param noisy: Noisy segments
        :param time: Their noise level
        :return: Denoised segments, moved
        """
        alpha, sigma = self._coefficients(time)
        denoised: th.Tensor | None = None
        if alpha < MIN_SIGNAL * sigma:
            # With so much noise the derivative is tiny, and networks do not learn it. Close to pure noise, the covariance
            # hardly changes with time
            denoised = self._denoise(noisy, time)
            noise = (noisy - alpha * denoised) / sigma
            time = self.model.schedule.time_at(MIN_SIGNAL)
            alpha, sigma = self._coefficients(time)
            noisy = alpha * denoised + sigma * noise
        with th.enable_grad():
            leaf = noisy.detach().requires_grad_()
            estimate = self._denoise(leaf, time)
            gradient = self._objective_gradient(estimate, leaf)
        denoised = estimate.detach() if denoised is None else denoised
        # The margin around the observed range also limits the guidance
        return (denoised + self.guidance_scale * sigma**2 / alpha * gradient).clamp(self.low, self.high)

    def _objective_gradient(self, denoised: th.Tensor, noisy: th.Tensor) -> th.Tensor:
        """
        :param denoised: Denoised segments, differentiable in the noisy ones
        :param noisy: What they depend on: noisy segments, or the denoised ones themselves
        :return: Gradient of the objective with respect to it, same shape
        :raises ValueError: If the objective does not depend on them
        """
        assert self.objective is not None
        # A transition counts as terminal if its probability is above one half
        objectives = self.objective(self._segments(denoised, 0.5))
        if not objectives.requires_grad:
            raise ValueError(
                "The objective depends on neither observations nor rewards, so there is nothing to move. Select among several "
                'segments instead: `guidance_mode="select"`'
            )
        (gradient,) = th.autograd.grad(objectives.sum(), noisy)
        return gradient

    def _coefficients(self, time: float) -> tuple[float, float]:
        """
        :param time: Noise level
        :return: ``alpha_t`` and ``sigma_t``
        """
        alpha, sigma = self.model.schedule.coefficients(th.tensor(time, dtype=th.float64))
        return alpha.item(), sigma.item()

    def finish(self, denoised: th.Tensor, chances: th.Tensor) -> Segments[th.Tensor]:
        """
        :param denoised: The sample, which is the outcome of the newest pass
        :param chances: Uniform between 0 and 1, shape (B, H): a transition is terminal if its probability is higher
        :return: Segments in raw units, with the actions of the policy at their states
        """
        # An autoregressive network has asked the policy at these very states, unless guidance has moved them since
        if self.objective is not None or not is_autoregressive(self.network):
            self._act_everywhere()
        return self._segments(denoised, chances)

    @th.no_grad()
    def _act(self, states: th.Tensor, steps: slice) -> th.Tensor:
        """
        :param states: Standardised states that the network has just predicted, shape (B, n, observation_dim + n_flags)
        :param steps: Which n steps of the segment they belong to
        :return: Standardised actions of the policy, shape (B, n, action_dim)
        """
        clamped = states.clamp(self.low[:-1], self.high[:-1])
        raw = self.model.observation_normalizer.inverse(clamped[..., : self.model.observation_dim])
        if steps.start == 0:
            # Neither rounded nor clamped
            raw[:, 0] = self.start
        self.actions[:, steps] = self.policy(raw, steps)
        return self.model.action_normalizer(self.actions[:, steps])

    @th.no_grad()
    def _act_everywhere(self) -> None:
        """Ask the policy for all actions at the denoised states of the newest pass."""
        states = self._raw_states(self.denoised)
        self.actions = self.policy(states[:, :-1], slice(0, self.horizon))

    def _raw_states(self, denoised: th.Tensor | None) -> th.Tensor:
        """
        :param denoised: Denoised segments; ``None`` before the first pass: all states are the start state then
        :return: States in raw units with the start state first, shape (B, H + 1, observation_dim)
        """
        if denoised is None:
            return self.start[:, None].expand(-1, self.horizon + 1, -1)
        next_states = self.model.observation_normalizer.inverse(denoised[..., : self.model.observation_dim])
        return th.cat([self.start[:, None], next_states], dim=1)

    def _segments(self, denoised: th.Tensor, threshold: th.Tensor | float) -> Segments[th.Tensor]:
        """
        :param denoised: Denoised segments
        :param threshold: A transition is terminal if its probability is above it, shape (B, H) or scalar
        :return: Segments in raw units. States and rewards are differentiable in the denoised ones, terminations are not
        """
        states = self._raw_states(denoised)
        rewards = self.model.reward_normalizer.inverse(denoised[..., -1:]).squeeze(-1)
        flags = denoised[..., self.model.observation_dim : -1]
        terminations = self.model.termination_probabilities(states.detach(), self.actions, flags) > threshold
        return Segments(states, self.actions, rewards, terminations, mask_after_termination(terminations))

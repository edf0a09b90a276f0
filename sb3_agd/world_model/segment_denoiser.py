"""The denoiser that samplers call when segments are imagined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch as th

from sb3_agd.world_model.denoisers import is_autoregressive
from sb3_agd.world_model.guidance import objective_gradient
from sb3_agd.world_model.guides import Critic, Guide
from sb3_agd.world_model.segments import Segments, mask_after_termination

if TYPE_CHECKING:
    from sb3_agd.world_model.world_model import DiffusionWorldModel

# Actions at imagined states, both in raw units: states (B, n, observation_dim), and which n steps of the segment they
# belong to -> (B, n, action_dim)
Policy = Callable[[th.Tensor, slice], th.Tensor]


class SegmentDenoiser:
    """
    The network of a world model with start states, a policy and perhaps a guide, as a function of the noisy segment and its
    time alone.

    :param model: The world model
    :param start: Start states in raw units, shape (B, observation_dim)
    :param policy: Actions at imagined states
    :param guide: The guide that moves the denoised segments, ``None`` for none
    :param critic: The critic of the guide
    :param guidance_scale: Strength of the guidance
    """

    def __init__(
        self,
        model: DiffusionWorldModel,
        start: th.Tensor,
        policy: Policy,
        guide: Guide | None,
        critic: Critic | None,
        guidance_scale: float,
    ):
        self.model = model
        self.network = model.ema_networks["denoiser"]
        self.start = start
        self.policy = policy
        self.guide = guide
        self.critic = critic
        self.guidance_scale = guidance_scale
        self.standardised_start = model.inputs(start)
        # For all states, computed once
        self.bounds = model.observation_normalizer.bounds
        # Those of the newest pass, in raw units
        self.actions = start.new_empty(len(start), model.horizon, model.action_dim)
        # The denoised segments of the newest pass
        self.denoised: th.Tensor | None = None
        # Length of the guide's shift at each guided step
        self.shifts: list[th.Tensor] = []

    def __call__(self, noisy: th.Tensor, time: float) -> th.Tensor:
        """
        :param noisy: Noisy next states and, last, rewards, standardised, shape (B, H, observation_dim + 1)
        :param time: Noise level between 0 and 1
        :return: Denoised next states and rewards, within the observed range plus a margin, same shape
        """
        times = th.full((len(noisy),), time, device=noisy.device)
        if is_autoregressive(self.network):
            estimate = self.network(noisy, times, self.standardised_start, self._act)
        else:
            self._act_everywhere()
            estimate = self.network(noisy, times, self.standardised_start, self.model.action_normalizer(self.actions))
        self.denoised = self._clamp(estimate)
        # Only the network decides about the last step
        is_last = time * self.model.n_denoising_steps < 1.5
        if self.guide is not None and not is_last:
            self.denoised = self._guided(self.denoised, time)
        return self.denoised

    def finish(self, denoised: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param denoised: The sample, which is the outcome of the newest pass
        :return: States with the start states first, shape (B, H + 1, observation_dim), the actions of the policy there,
            shape (B, H, action_dim), and rewards, shape (B, H), in raw units
        """
        # An autoregressive network has asked the policy at these very states
        if not is_autoregressive(self.network):
            self._act_everywhere()
        return self._raw_states(denoised), self.actions, self._raw_rewards(denoised)

    def _act(self, states: th.Tensor, steps: slice) -> th.Tensor:
        """
        :param states: Standardised states that the network has just predicted, shape (B, n, observation_dim)
        :param steps: Which n steps of the segment they belong to
        :return: Standardised actions of the policy, shape (B, n, action_dim)
        """
        raw = self.model.observation_normalizer.inverse(states.clamp(*self.bounds))
        if steps.start == 0:
            # Neither rounded nor clamped
            raw[:, 0] = self.start
        self.actions[:, steps] = self.policy(raw, steps)
        return self.model.action_normalizer(self.actions[:, steps])

    def _act_everywhere(self) -> None:
        """Ask the policy for all actions at the denoised states of the newest pass."""
        states = self._raw_states(self.denoised)
        self.actions = self.policy(states[:, :-1], slice(0, self.model.horizon))

    def _guided(self, denoised: th.Tensor, time: float) -> th.Tensor:
        """
        :param denoised: Denoised segments
        :param time: Noise level of the noisy ones
        :return: Denoised segments, moved along the gradient of the guide's objective
        """
        assert self.guide is not None and self.critic is not None
        self._act_everywhere()
        with th.enable_grad():
            leaf = denoised.detach().requires_grad_()
            segments = self._estimated_segments(leaf)
            gradient = objective_gradient(self.guide, segments, self.critic, leaf)
        weight = self.model.schedule.guidance_weight(th.tensor(time, dtype=th.float64)).item()
        # The margin around the observed range also limits the guide
        guided = self._clamp(denoised + self.guidance_scale * weight * gradient)
        self.shifts.append((guided - denoised).flatten(1).norm(dim=1).mean())
        return guided

    def _clamp(self, denoised: th.Tensor) -> th.Tensor:
        """
        :param denoised: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1)
        :return: The same, within the observed range plus a margin
        """
        pairs = zip(self.model.observation_normalizer.bounds, self.model.reward_normalizer.bounds, strict=True)
        low, high = (th.cat(pair) for pair in pairs)
        return denoised.clamp(low, high)

    def _raw_states(self, denoised: th.Tensor | None) -> th.Tensor:
        """
        :param denoised: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1); ``None`` before the
            first pass: all states are the start state then
        :return: States in raw units with the start state first, shape (B, H + 1, observation_dim)
        """
        if denoised is None:
            return self.start[:, None].expand(-1, self.model.horizon + 1, -1)
        return th.cat([self.start[:, None], self.model.observation_normalizer.inverse(denoised[..., :-1])], dim=1)

    def _raw_rewards(self, denoised: th.Tensor) -> th.Tensor:
        """
        :param denoised: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1)
        :return: Rewards in raw units, shape (B, H)
        """
        return self.model.reward_normalizer.inverse(denoised[..., -1:]).squeeze(-1)

    def _estimated_segments(self, denoised: th.Tensor) -> Segments[th.Tensor]:
        """
        Denoised segments as a guide sees them. A transition is terminal if its probability is above one half.

        :param denoised: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1)
        :return: Segments in raw units, differentiable in the denoised ones
        """
        states = self._raw_states(denoised)
        terminations = self.model.termination_probabilities(states.detach(), self.actions) > 0.5
        return Segments(states, self.actions, self._raw_rewards(denoised), terminations, mask_after_termination(terminations))

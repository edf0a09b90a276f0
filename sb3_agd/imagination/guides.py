"""
Guides: what imagined segments are steered towards.

A guide defines one scalar ``J`` per segment. Guided segments follow the world model's distribution reweighted by
``exp(scale * J)`` (arXiv 2604.09035). Either one of several candidates is drawn,
which is self-normalised importance sampling (:func:`select_candidates`), exact in the limit of many candidates. Or the world
model moves its denoised segments along the gradient of ``J``, as far as it leaves them uncertain.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch as th
from torch.nn import functional as F

from sb3_agd.world_model.segment_denoiser import GUIDANCE_WEIGHTS
from sb3_agd.world_model.segments import Segments
from sb3_agd.world_model.validation import check_choice


@dataclass(frozen=True)
class Critic:
    """
    The agent's critic, in the critic's own units.

    :param values: Values of states in raw units, (N, observation_dim) -> (N,), differentiable
    :param rewards: Rewards in the critic's units from raw rewards, same shape
    :param gamma: Discount factor
    :param advantage_std: Standard deviation of the one-step advantage on real data, in the critic's units. Advantages
        are divided by it, so that one guidance scale serves tasks with any size of reward
    """

    values: Callable[[th.Tensor], th.Tensor]
    rewards: Callable[[th.Tensor], th.Tensor]
    gamma: float
    advantage_std: float = 1.0

    def advantages(self, segments: Segments[th.Tensor]) -> th.Tensor:
        """
        One-step advantages ``r + gamma (1 - d) V(s') - V(s)`` in standard deviations, zero where masked.
        Rewards and terminations count as constants, the states do not.

        :param segments: In raw units
        :return: Shape (B, H)
        """
        # Step by step, so that the activations of the critic fit into the processor's cache
        values = th.stack([self.values(states) for states in segments.observations.unbind(1)], dim=1)
        rewards = self.rewards(segments.rewards).detach()
        continues = 1 - segments.terminations.detach().to(values)
        advantages = rewards + self.gamma * continues * values[:, 1:] - values[:, :-1]
        return advantages * segments.mask / self.advantage_std


class Guide(ABC):
    """
    Base of all guides. For a guide of your own, define :meth:`objective` and pass an instance as ``guidance``.

    The arguments are for comparisons with the paper, and attributes as well. With their defaults, an instance guides like the
    name of the guide.

    :param weight: What the gradient is multiplied by, with ``guidance_mode="gradient"``: ``"calibrated"``, the covariance that
        the denoiser leaves, or ``"sigma4"``, the fourth power of the posterior standard deviation of each step of the sampler,
        as in the paper's public code
    :param last_state: Whether the gradient moves the last state of a segment, too. In the paper's public code it does not
    :param critic_trust: Whether the scale is multiplied by the explained variance of the critic
    :param advantage_scaling: Whether advantages are in standard deviations of the real ones rather than in the critic's units
    :raises ValueError: If an argument is invalid
    """

    # Those of a subclass with a constructor of its own
    weight: str = "calibrated"
    last_state: bool = True
    critic_trust: bool = True
    advantage_scaling: bool = True

    def __init__(
        self, weight: str = "calibrated", last_state: bool = True, critic_trust: bool = True, advantage_scaling: bool = True
    ):
        check_choice("weight", weight, GUIDANCE_WEIGHTS)
        self.weight = weight
        flags = {"last_state": last_state, "critic_trust": critic_trust, "advantage_scaling": advantage_scaling}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be True or False, not {value!r}")
            setattr(self, name, value)

    @abstractmethod
    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        """
        :param segments: Segments in raw units; gradients flow through ``observations`` and ``rewards``. Where a segment ends
            early (``mask``), the missing steps must not change its objective
        :param critic: The agent's critic
        :return: What to raise, one scalar per segment, shape (B,)
        """

    def checked_objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        """
        :meth:`objective` with the switches of the guide, as floating-point numbers.

        :param segments: See there
        :param critic: The agent's critic
        :return: Shape (B,)
        :raises ValueError: If it has another shape
        """
        if not self.last_state:
            states = segments.observations
            segments = replace(segments, observations=th.cat([states[:, :-1], states[:, -1:].detach()], dim=1))
        if not self.advantage_scaling:
            critic = replace(critic, advantage_std=1.0)
        objectives = self.objective(segments, critic)
        if objectives.shape != (len(segments),):
            raise ValueError(
                f"The objective of {type(self).__name__} must have one number per segment, shape {(len(segments),)}, not "
                f"{tuple(objectives.shape)}"
            )
        return objectives if objectives.is_floating_point() else objectives.float()


class ExponentialAdvantageGuide(Guide):
    """
    Exponential Advantage Guidance (EAG): segments are weighted by ``exp(sum of advantages)``, without bound.
    """

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return critic.advantages(segments).sum(1)


class SigmoidAdvantageGuide(Guide):
    """
    Sigmoid Advantage Guidance (SAG): segments are weighted by the product of ``sigmoid(advantage)``. The gradient with
    respect to an advantage is ``1 - sigmoid(advantage)``: it vanishes if the advantage is high.

    Each masked step counts as a step with advantage 0. Without these factors of ``sigmoid(0)``, segments that end early
    would have larger weights than whole ones.
    """

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return F.logsigmoid(critic.advantages(segments)).sum(1)


class RewardGuide(Guide):
    """
    Guidance by the sum of imagined rewards, as in Diffuser (arXiv 2205.09991). What follows the segment does not count.
    Rewards are in the critic's units and in standard deviations of the advantage, as for the other guides.

    With ``weight="calibrated"``, the gradient moves the states as well, by what the world model knows of how rewards depend on
    them. With ``"sigma4"`` it moves rewards alone.
    """

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return (critic.rewards(segments.rewards) * segments.mask).sum(1) / critic.advantage_std


def select_candidates(
    objectives: th.Tensor, n_candidates: int, scale: float, generator: th.Generator | None = None
) -> th.Tensor:
    """
    Draw one candidate of each group with probability proportional to ``exp(scale * J)``. Candidates whose objective is
    not a number come last.

    :param objectives: ``J`` of all candidates, those of a group one after the other, shape (B * n_candidates,)
    :param n_candidates: Number of candidates of a group
    :param scale: Strength of the guidance
    :param generator: Source of randomness
    :return: Positions of those that were drawn, shape (B,)
    """
    lowest, highest = th.finfo(objectives.dtype).min, th.finfo(objectives.dtype).max
    # Softmax takes differences, which must not overflow either
    bounded = (scale * objectives).nan_to_num(nan=-math.inf).clamp(lowest / 4, highest / 4)
    probabilities = bounded.view(-1, n_candidates).softmax(1)
    drawn = th.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return drawn + th.arange(0, len(objectives), n_candidates, device=objectives.device)


GUIDES: dict[str, type[Guide]] = {
    "sag": SigmoidAdvantageGuide,
    "eag": ExponentialAdvantageGuide,
    "reward": RewardGuide,
}

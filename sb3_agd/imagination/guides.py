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
from dataclasses import dataclass

import torch as th
from torch.nn import functional as F

from sb3_agd.world_model.segments import Segments


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
    """

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
        :meth:`objective`, as floating-point numbers.

        :param segments: See there
        :param critic: The agent's critic
        :return: Shape (B,)
        :raises ValueError: If it has another shape
        """
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

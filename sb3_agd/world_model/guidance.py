"""
How a guide acts on imagined segments, so that they follow the distribution reweighted by ``exp(scale * J)``:

- :func:`select_candidates` draws one of several segments from the same start state. This is self-normalised importance
  sampling, exact in the limit of many candidates. The segments obey the dynamics of the world model.
- :class:`~sb3_agd.world_model.segment_denoiser.SegmentDenoiser` moves the denoised segments of each step of the sampler
  along the gradient of ``J``, as far as the world model leaves them uncertain. Given start and actions, the next states of
  many tasks are certain, and there this does almost nothing.
"""

import math

import torch as th

from sb3_agd.world_model.guides import Critic, Guide
from sb3_agd.world_model.segments import Segments


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


def objective_gradient(guide: Guide, segments: Segments[th.Tensor], critic: Critic, noisy: th.Tensor) -> th.Tensor:
    """
    :param guide: The guide
    :param segments: Denoised segments, differentiable in the noisy ones
    :param critic: The agent's critic
    :param noisy: The noisy segments, which require a gradient
    :return: Gradient of the guide's objective with respect to the noisy segments, same shape
    :raises ValueError: If the objective has a wrong shape or does not depend on the sample
    """
    objective = guide.checked_objective(segments, critic)
    if not objective.requires_grad:
        raise ValueError(
            f"The objective of {type(guide).__name__} depends on neither observations nor rewards, so there is "
            'nothing to move. Select among several segments instead: `guidance_mode="select"`'
        )
    (gradient,) = th.autograd.grad(objective.sum(), noisy)
    return gradient

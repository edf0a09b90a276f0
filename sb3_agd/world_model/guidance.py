"""
How a guide acts on imagined segments, so that they follow the distribution reweighted by ``exp(scale * J)``:

- :func:`select_candidates` draws one of several segments from the same start state. This is self-normalised importance
  sampling, exact in the limit of many candidates. The segments obey the dynamics of the world model.
- :func:`objective_gradient` is what the denoised sample of each step is moved along. The gradient goes through the critic,
  not through the denoiser. Where the dynamics are nearly deterministic, such segments violate them.
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


def objective_gradient(guide: Guide, segments: Segments[th.Tensor], critic: Critic, denoised: th.Tensor) -> th.Tensor:
    """
    :param guide: The guide
    :param segments: Segments of a denoised sample, differentiable in it
    :param critic: The agent's critic
    :param denoised: The denoised sample, which requires a gradient
    :return: Gradient of the guide's objective with respect to the denoised sample, same shape
    :raises ValueError: If the objective has a wrong shape or does not depend on the sample
    """
    objective = guide.checked_objective(segments, critic)
    if not objective.requires_grad:
        raise ValueError(
            f"The objective of {type(guide).__name__} depends on neither observations nor rewards, so there is "
            'nothing to move. Select among several segments instead: `guidance_mode="select"`'
        )
    (gradient,) = th.autograd.grad(objective.sum(), denoised)
    return gradient

"""Errors of the world model on the newest rollouts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_agd.experience.randomness import missed_randomness
from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.imagination.critic_trust import MIN_ROWS

if TYPE_CHECKING:
    from sb3_agd.imagination.imagination import Imagination

# Segments that the world model is tested on
HELD_OUT_SEGMENTS = 256
# Advantages count as constant if all differ less than this from their mean, in standard deviations of past rollouts
SAME_ADVANTAGE = 1e-4


def held_out_errors(imagination: Imagination) -> dict[str, th.Tensor]:
    """
    Test the world model on segments of the newest rollout, which it was not trained on yet. A few rows say nothing: if there
    are less than ``MIN_ROWS``, older ones are added. It knows those if it is trained after every few steps.

    :param imagination: World model and data
    :return: What :func:`segment_errors` returns, ``missed_randomness`` (see :func:`missed_randomness`), and
        ``advantage_correlation``: that of the one-step advantages along imagined and real segments with the same actions,
        by the present critic; NaN where the real ones are constant
    """
    world_model, buffer, critic = imagination.world_model, imagination.replay_buffer, imagination.critic
    enough = buffer.position - math.ceil(MIN_ROWS / buffer.n_envs)
    env_indices, rows = buffer.transitions_since(np.minimum(imagination.recorder.rollout_start, enough))
    chosen = imagination.state.rng.integers(len(rows), size=min(HELD_OUT_SEGMENTS, len(rows)))
    tested, generator = (env_indices[chosen], rows[chosen]), imagination.generator()
    segments = world_model.on_device(buffer.segments(*tested, world_model.horizon))
    imagined = world_model.predict(segments.observations[:, 0], segments.actions, generator)
    kept = segments.mask & imagined.mask
    with th.no_grad():
        claimed, real = (critic.advantages(both)[kept] for both in (imagined, segments))
    deviations = real - real.mean()
    correlation = F.cosine_similarity(claimed - claimed.mean(), deviations, dim=0)
    if not (deviations.abs() > SAME_ADVANTAGE).any():
        correlation = th.full_like(correlation, math.nan)
    missed = th.zeros(())
    if not imagination.settings.suits_randomness:
        missed = missed_randomness(world_model, buffer, tested, segments, imagined, generator)
    errors = segment_errors(world_model, imagined, segments)
    return errors | {"advantage_correlation": correlation, "missed_randomness": missed}

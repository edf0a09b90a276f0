"""Errors of the world model on the newest transitions."""

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

# Advantages count as constant if all differ less than this from their mean, in standard deviations of past rollouts
SAME_ADVANTAGE = 1e-4


def held_out_errors(imagination: Imagination) -> dict[str, th.Tensor]:
    """
    Test the world model on segments of the newest transitions, which it was not trained on yet: those of the newest rollout,
    or of several short ones since the last update.

    :param imagination: World model and data
    :return: What :func:`segment_errors` returns, ``missed_randomness`` (see :func:`missed_randomness`), and
        ``advantage_correlation``: that of the one-step advantages along imagined and real segments with the same actions,
        by the critic of the time; NaN where the real ones are constant. After short rollouts, it is that of several tests,
        on ``MIN_ROWS`` rows or more
    """
    world_model, buffer, critic = imagination.world_model, imagination.replay_buffer, imagination.critic
    interval = imagination.settings.update_interval(imagination.model.n_steps * buffer.n_envs)
    last_update = buffer.position - interval // buffer.n_envs
    env_indices, rows = buffer.transitions_since(np.minimum(imagination.recorder.rollout_start, last_update))
    chosen = imagination.state.rng.integers(len(rows), size=min(MIN_ROWS, len(rows)))
    tested, generator = (env_indices[chosen], rows[chosen]), imagination.generator()
    segments = buffer.segments(*tested, world_model.horizon).to(world_model.device)
    imagined = world_model.predict(segments.observations[:, 0], segments.actions, generator)
    kept = segments.mask & imagined.mask
    with th.no_grad():
        pairs = th.stack([critic.advantages(both)[kept] for both in (imagined, segments)])
    if len(chosen) < MIN_ROWS:
        state, newest = imagination.state, pairs.cpu()
        joined = newest if state.advantages is None else th.cat([state.advantages, newest], dim=1)
        # A row begins a segment, which has `horizon` pairs at most
        pairs = state.advantages = joined[:, -MIN_ROWS * world_model.horizon :]
    claimed, real = pairs
    deviations = real - real.mean()
    correlation = F.cosine_similarity(claimed - claimed.mean(), deviations, dim=0)
    if not (deviations.abs() > SAME_ADVANTAGE).any():
        correlation = th.full_like(correlation, math.nan)
    missed = th.zeros(())
    if not imagination.settings.suits_randomness:
        missed = missed_randomness(world_model, buffer, tested, segments, imagined, generator)
    errors = segment_errors(world_model, imagined, segments)
    return errors | {"advantage_correlation": correlation, "missed_randomness": missed}

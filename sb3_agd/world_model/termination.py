"""Which transitions end an episode in a terminal state: a classifier that learns it, flags to denoise, and a user's rule."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_agd.world_model.segments import Segments

N_HALVES = 2
# Change of the offset of the log-odds per update, if terminations come twice as often as in the data: CALIBRATION_SPAN /
# (number of updates + CALIBRATION_DELAY), but not less than the lowest rate
CALIBRATION_SPAN = 5.0
CALIBRATION_DELAY = 100.0
MIN_CALIBRATION_RATE = 0.002
MAX_CALIBRATION_STEP = 0.25
# Terminal transitions: (N, observation_dim), (N, action_dim), (N, observation_dim) -> (N,) boolean, in raw units
TerminationFn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class TerminationClassifier(nn.Module):
    """
    Log-odds that a transition ends the episode in a terminal state. All inputs are standardised.

    Terminal transitions can be so rare that networks memorise them, and new ones are not recognised. To know how often this
    happens, there are two networks. Each is trained on one half of the terminal transitions and tested on the other, and
    an offset common to both makes the mean of their probabilities on new transitions the real rate (cross-fitting).

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param width: Units of each of the two hidden layers
    :param prior: Probability that an untrained classifier gives
    """

    offset: th.Tensor
    n_calibrations: th.Tensor

    def __init__(self, observation_dim: int, action_dim: int, width: int = 64, prior: float = 0.01):
        super().__init__()
        self.networks = nn.ModuleList()
        for _ in range(N_HALVES):
            log_odds = nn.Linear(width, 1)
            nn.init.zeros_(log_odds.weight)
            nn.init.constant_(log_odds.bias, math.log(prior / (1 - prior)))
            first = nn.Linear(2 * observation_dim + action_dim, width)
            self.networks.append(nn.Sequential(first, nn.SiLU(), nn.Linear(width, width), nn.SiLU(), log_odds))
        # A network sees only its share of the terminal transitions
        self.register_buffer("offset", th.tensor(math.log(N_HALVES)))
        # A float, as all buffers that SB3 saves
        self.register_buffer("n_calibrations", th.zeros(()))

    def forward(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Shape (..., observation_dim)
        :param actions: Shape (..., action_dim)
        :param next_observations: Shape (..., observation_dim)
        :return: Log-odds of each network without the offset, shape (..., N_HALVES)
        """
        inputs = th.cat([observations, actions, next_observations], dim=-1)
        return th.cat([network(inputs) for network in self.networks], dim=-1)

    def probabilities(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """See :meth:`forward`. :return: Probability that each transition is terminal, shape (...)"""
        return (self(observations, actions, next_observations) + self.offset).sigmoid().mean(-1)

    def loss(self, log_odds: th.Tensor, terminal: th.Tensor, halves: th.Tensor, n_natural: int, rate: float) -> th.Tensor:
        """
        Cross-entropy. Terminal transitions are too rare to learn from as they come, so many more of them are shown, and
        the log-odds are corrected for it (King and Zeng, 2001, "Logistic regression in rare events data").

        :param log_odds: Shape (N, N_HALVES)
        :param terminal: Whether each transition is terminal, shape (N,)
        :param halves: Half that each transition belongs to, shape (N,)
        :param n_natural: Number of transitions that come as often as they do in the data; additional terminal ones follow
        :param rate: Share of terminal transitions in the data
        :return: Scalar
        """
        excess = 1 + (len(terminal) - n_natural) / (n_natural * rate)
        targets = terminal.float()[:, None].expand_as(log_odds)
        losses = F.binary_cross_entropy_with_logits(log_odds + math.log(excess), targets, reduction="none")
        return (losses * ~self._held_out(terminal, halves)).mean()

    @th.no_grad()
    def calibrate(self, log_odds: th.Tensor, terminal: th.Tensor, halves: th.Tensor, n_natural: int, rate: float) -> None:
        """
        Move the offset so that terminations of transitions that a network was not trained on come at the real rate. See
        :meth:`loss` for the arguments.
        """
        probabilities = (log_odds + self.offset).sigmoid()
        held_out = self._held_out(terminal, halves)
        recognised = (probabilities * held_out).sum() / held_out.sum().clamp(min=1)
        false_alarms = (probabilities[:n_natural] * ~terminal[:n_natural, None]).mean()
        surplus = recognised + false_alarms / rate - 1
        rate_of_change = (CALIBRATION_SPAN / (self.n_calibrations + CALIBRATION_DELAY)).clamp(min=MIN_CALIBRATION_RATE)
        self.offset -= (rate_of_change * surplus).clamp(-MAX_CALIBRATION_STEP, MAX_CALIBRATION_STEP)
        self.n_calibrations += 1

    def _held_out(self, terminal: th.Tensor, halves: th.Tensor) -> th.Tensor:
        """
        :param terminal: Whether each transition is terminal, shape (N,)
        :param halves: Half that each transition belongs to, shape (N,)
        :return: Whether each network is not trained on each transition, shape (N, N_HALVES)
        """
        return terminal[:, None] & (halves[:, None] == th.arange(N_HALVES, device=halves.device))


def half_of(transitions: th.Tensor) -> th.Tensor:
    """
    :param transitions: In single precision, all numbers of each transition, shape (N, dim)
    :return: 0 or 1 by a hash of the numbers, so that a transition and its copies always belong to the same half, shape (N,)
    """
    bits = transitions.float().contiguous().view(th.int32).long()
    multipliers = 2654435761 * (2 * th.arange(bits.shape[1], device=bits.device) + 1)
    return (bits * multipliers).sum(1).bitwise_right_shift(29) & 1


def absorbing(segments: Segments[th.Tensor]) -> tuple[th.Tensor, Segments[th.Tensor]]:
    """
    What terminations are denoised from. An episode that has terminated stays in its last state to the end of the segment, and
    this is learned as well. If it were masked, networks that see whole segments would learn from the padding that a
    termination is near, and there is no such padding in imagination.

    :param segments: Segments, padded with copies of their last transition
    :return: Flags of the states, 1 from the terminal one on and -1 before, shape (B, H + 1, 1); and the segments, masked after
        the end of the data only
    """
    over = segments.terminations.cumsum(1) > 0
    flags = 2 * F.pad(over.to(segments.rewards), (1, 0))[..., None] - 1
    # Copies of the last action would tell as much: those of other segments in their place
    others = th.stack([segments.actions[:, 0].roll(step, 0) for step in range(1, over.shape[1] + 1)], dim=1)
    actions = th.where(segments.mask[..., None], segments.actions, others)
    return flags, replace(segments, actions=actions, mask=segments.mask | over)


def apply_rule(rule: TerminationFn, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    :param rule: The user's rule of termination
    :param states: In raw units, shape (B, H + 1, observation_dim)
    :param actions: In raw units, shape (B, H, action_dim)
    :return: 1 for each transition that is terminal, 0 for the others, shape (B, H)
    :raises ValueError: If the rule does not return one boolean per transition
    """
    rows = [array.reshape(-1, array.shape[-1]).cpu().numpy() for array in (states[:, :-1], actions, states[:, 1:])]
    outcome = np.asarray(rule(*rows))
    if outcome.shape != (len(rows[0]),):
        raise ValueError(f"`termination_fn` must return one boolean per row, shape {(len(rows[0]),)}, not {outcome.shape}")
    if outcome.dtype != np.bool_:
        raise ValueError(f"`termination_fn` must return booleans, not values of type {outcome.dtype}")
    return th.as_tensor(outcome, dtype=states.dtype, device=states.device).view(actions.shape[:2])

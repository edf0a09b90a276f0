"""Which transitions end an episode in a terminal state: a classifier that learns it, and a user's own rule."""

import math
from collections.abc import Callable

import numpy as np
import torch as th
from torch import nn

# Terminal transitions: (N, observation_dim), (N, action_dim), (N, observation_dim) -> (N,) boolean, in raw units
TerminationFn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class TerminationClassifier(nn.Module):
    """
    Log-odds that a transition ends the episode in a terminal state. All inputs are standardised.

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param width: Units of each of the two hidden layers
    :param prior: Probability that an untrained classifier gives
    """

    def __init__(self, observation_dim: int, action_dim: int, width: int = 64, prior: float = 0.01):
        super().__init__()
        log_odds = nn.Linear(width, 1)
        nn.init.zeros_(log_odds.weight)
        nn.init.constant_(log_odds.bias, math.log(prior / (1 - prior)))
        self.layers = nn.Sequential(
            nn.Linear(2 * observation_dim + action_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            log_odds,
        )

    def forward(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Shape (..., observation_dim)
        :param actions: Shape (..., action_dim)
        :param next_observations: Shape (..., observation_dim)
        :return: Log-odds, shape (...)
        """
        return self.layers(th.cat([observations, actions, next_observations], dim=-1)).squeeze(-1)


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

"""
Denoisers: networks that predict the next states and rewards of a segment from their noisy version, the noise level, the
start state and the actions. All values are standardised. A denoiser is independent of the noise schedule and of guidance.

A denoiser whose ``is_autoregressive`` is true also takes segments of any length, and a policy in place of the actions.
"""

from collections.abc import Callable
from typing import ClassVar

import torch as th
from torch import nn
from torch.nn import functional as F

TIME_EMBEDDING_DIM = 16
# Actions at states, both standardised: states (B, n, observation_dim), and which n steps of the segment they belong to
# -> (B, n, action_dim)
StandardisedPolicy = Callable[[th.Tensor, slice], th.Tensor]
# Highest frequency of the time embedding, in radians per unit of time
TIME_EMBEDDING_MAX_FREQUENCY = 1000.0


def is_autoregressive(denoiser: nn.Module) -> bool:
    """
    :param denoiser: A denoiser, perhaps a user's
    :return: Whether it predicts segments state by state and can ask a policy for each action
    """
    return getattr(denoiser, "is_autoregressive", False)


def time_embedding(time: th.Tensor) -> th.Tensor:
    """
    Sinusoidal features of the noise level (Vaswani et al., arXiv 1706.03762).

    :param time: Between 0 and 1, shape (B,)
    :return: Features, shape (B, TIME_EMBEDDING_DIM)
    """
    exponents = th.linspace(0, 1, TIME_EMBEDDING_DIM // 2, device=time.device)
    angles = time[:, None] * TIME_EMBEDDING_MAX_FREQUENCY**exponents
    return th.cat([angles.sin(), angles.cos()], dim=-1)


class RecurrentDenoiser(nn.Module):
    """
    Denoiser that predicts a segment state by state: the estimate of each next state depends on the estimate of the state
    before it, the action, and the noisy next state. The weights are shared over time, as the laws of motion are, and no
    estimate depends on a later action. A network without this causality would learn from the padding after the last
    transition that an episode is about to end; there is no such padding in imagination.

    The network can ask a policy for each action at the state that it has just predicted, so that states and actions agree
    after a single pass.

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param horizon: Number of transitions of a segment; the weights do not depend on it
    :param width: Units of each hidden layer
    :param depth: Number of hidden layers of one step
    """

    is_autoregressive: ClassVar[bool] = True

    def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int = 128, depth: int = 2):
        super().__init__()
        self.input = nn.Linear(observation_dim + 1 + TIME_EMBEDDING_DIM, width)
        self.action = nn.Linear(action_dim, width, bias=False)
        self.state = nn.Linear(observation_dim, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.change = nn.Linear(width, observation_dim)
        self.reward = nn.Linear(width, 1)
        # Start from "persistence"
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(
        self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor | StandardisedPolicy
    ) -> th.Tensor:
        """
        :param noisy: Noisy next states and, last, rewards, shape (B, H, observation_dim + 1)
        :param time: Noise level, shape (B,)
        :param start: Start states, shape (B, observation_dim)
        :param actions: Shape (B, H, action_dim), or a policy to ask
        :return: Denoised next states and, last, rewards, shape (B, H, observation_dim + 1)
        """
        noisy_weight, time_weight = self.input.weight.split([noisy.shape[-1], TIME_EMBEDDING_DIM], dim=1)
        offset = F.linear(time_embedding(time), time_weight, self.input.bias)
        # One wide matrix product is faster than several narrow ones
        input_weight = th.cat([noisy_weight, self.state.weight, self.action.weight], dim=1).t()
        output_weight = th.cat([self.change.weight, self.reward.weight])
        output_bias = th.cat([self.change.bias, self.reward.bias])
        state, predictions = start, []
        for step, noisy_step in enumerate(noisy.unbind(1)):
            if isinstance(actions, th.Tensor):
                action = actions[:, step]
            else:
                action = actions(state[:, None], slice(step, step + 1)).squeeze(1)
            hidden = F.silu(th.addmm(offset, th.cat([noisy_step, state, action], dim=1), input_weight))
            for layer in self.hidden:
                hidden = hidden + F.silu(layer(hidden))
            change, reward = F.linear(hidden, output_weight, output_bias).split([state.shape[1], 1], dim=1)
            state = state + change
            predictions += [state, reward]
        return th.cat(predictions, dim=1).view(noisy.shape)


class ResidualMLPDenoiser(nn.Module):
    """
    Denoiser of PolyGRAD (arXiv 2312.08533): residual blocks over the flattened segment.

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param horizon: Number of transitions of a segment
    :param width: Units of each hidden layer
    :param depth: Number of residual blocks
    """

    def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int = 128, depth: int = 2):
        super().__init__()
        output_dim = horizon * (observation_dim + 1)
        self.input = nn.Linear(output_dim + observation_dim + horizon * action_dim + TIME_EMBEDDING_DIM, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(depth)
        )
        self.output = nn.Linear(width, output_dim)

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """See :meth:`RecurrentDenoiser.forward`; the actions must be given."""
        hidden = self.input(th.cat([noisy.flatten(1), start, actions.flatten(1), time_embedding(time)], dim=-1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.output(hidden).view_as(noisy)


DENOISERS: dict[str, type[nn.Module]] = {"recurrent": RecurrentDenoiser, "mlp": ResidualMLPDenoiser}

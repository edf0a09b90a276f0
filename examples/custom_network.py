"""
Custom networks for the policy and for the world model::

    python examples/custom_network.py
"""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_agd import AGDPPO


class GRUDenoiser(nn.Module):
    """
    Denoiser with a gated recurrent unit. The first three arguments must be these; all values are standardised.

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param horizon: Number of transitions of a segment
    :param width: Units of each layer
    :param depth: Number of layers
    """

    def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int = 128, depth: int = 1):
        super().__init__()
        # At each step: noisy next state and reward, action, start state, noise level
        self.recurrent = nn.GRU(2 * observation_dim + action_dim + 2, width, depth, batch_first=True)
        self.output = nn.Linear(width, observation_dim + 1)

    def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param noisy: Noisy next states and, last, rewards, shape (B, H, observation_dim + 1)
        :param time: Noise level between 0 and 1, shape (B,)
        :param start: Start states, shape (B, observation_dim)
        :param actions: Shape (B, H, action_dim)
        :return: Denoised next states and, last, rewards, shape (B, H, observation_dim + 1)
        """
        known = th.cat([start, time[:, None]], dim=-1)[:, None].expand(-1, noisy.shape[1], -1)
        features, _ = self.recurrent(th.cat([noisy, actions, known], dim=-1))
        return self.output(features)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=20_000)
arguments = parser.parse_args()
# More threads slow such small networks down
th.set_num_threads(1)

model = AGDPPO(
    "MlpPolicy",
    make_vec_env("Pendulum-v1", seed=0),
    n_steps=256,
    batch_size=256,
    gamma=0.9,
    policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [128, 128]}, "activation_fn": nn.ReLU},
    # "recurrent" and "mlp" are the networks of the package
    world_model_kwargs={"network": GRUDenoiser, "network_kwargs": {"width": 64}},
    # A network that does not ask the policy on its way needs more steps until states and actions fit together
    n_denoising_steps=4,
    seed=0,
    device="cpu",
    verbose=1,
)
model.learn(arguments.timesteps)
print(model.policy)
print(model.world_model.networks)

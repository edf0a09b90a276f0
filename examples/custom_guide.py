"""
A custom guide: imagined segments with high advantages, but without high speed::

    python examples/custom_guide.py
"""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_agd import AGDPPO, Guide
from sb3_agd.imagination import Critic
from sb3_agd.world_model import Segments


class SlowGuide(Guide):
    """
    Sum of advantages, minus a penalty on the speed of the pendulum.

    :param penalty: Standard deviations of the advantage that a squared speed of 1 costs
    """

    def __init__(self, penalty: float):
        self.penalty = penalty

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        # In raw units, (B, H): the speed that each transition leads to
        speed = segments.observations[:, 1:, 2]
        # Advantages are zero behind a termination; additional terms have to be masked
        per_step = critic.advantages(segments) - self.penalty * speed.square() * segments.mask
        return per_step.sum(1)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=20_000)
arguments = parser.parse_args()
# More threads slow such small networks down
th.set_num_threads(1)

env = make_vec_env("Pendulum-v1", seed=0)
model = AGDPPO("MlpPolicy", env, n_steps=256, batch_size=256, gamma=0.9, guidance=SlowGuide(penalty=0.1), verbose=1)
model.learn(arguments.timesteps)

# The same start states, with the guide and without
starts = env.reset().repeat(256, axis=0)
for name, guidance in (("with the guide", model.guidance), ("without", "none")):
    segments = model.imagine(starts, guidance=guidance, seed=0)
    print(f"Mean imagined speed {name}: {abs(segments.observations[:, 1:, 2]).mean():.2f}")

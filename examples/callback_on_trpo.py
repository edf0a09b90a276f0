"""
Imagination for another on-policy algorithm, here TRPO of sb3-contrib::

    python examples/callback_on_trpo.py
"""

import argparse

import torch as th
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_agd import AugmentedRolloutBuffer, GuidanceCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=20_000)
arguments = parser.parse_args()
# More threads slow such small networks down
th.set_num_threads(1)

model = TRPO(
    "MlpPolicy",
    make_vec_env("Pendulum-v1", seed=0),
    n_steps=512,
    gamma=0.9,
    # The callback puts imagined rows into this buffer, from which TRPO takes its minibatches
    rollout_buffer_class=AugmentedRolloutBuffer,
    seed=0,
    device="cpu",
    verbose=1,
)
guidance = GuidanceCallback(guidance="sag", synthetic_ratio=4)
model.learn(arguments.timesteps, callback=guidance)

# The world model belongs to the callback, which has a file of its own
model.save("trpo_pendulum")
guidance.save("guidance_pendulum")
print(f"Updates of the world model: {guidance.world_model.n_updates.item():.0f}")

"""
AGDPPO and PPO with the same settings, side by side::

    python examples/compare_with_ppo.py

One run of each says little: repeat it with several seeds (--seed). ``python -m benchmarks.run`` does so at scale.
"""

import argparse

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=30_000)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
# More threads slow such small networks down
th.set_num_threads(1)

settings = {"n_steps": 256, "batch_size": 256, "gamma": 0.99, "ent_coef": 0.01}
for algorithm in (PPO, AGDPPO):
    env = VecNormalize(make_vec_env("Hopper-v5", seed=arguments.seed), gamma=settings["gamma"])
    model = algorithm("MlpPolicy", env, seed=arguments.seed, device="cpu", **settings)
    model.learn(arguments.timesteps)
    env.training, env.norm_reward = False, False
    mean, std = evaluate_policy(model, env, n_eval_episodes=10)
    print(f"{algorithm.__name__} after {model.num_timesteps:,} steps: {mean:.0f} ± {std:.0f}")

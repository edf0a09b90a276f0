"""
SAC trained in the world model of AGDPPO, without a step of its own in the real task::

    python examples/train_in_imagination.py
"""

import argparse

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from sb3_agd import AGDPPO, ImaginedVecEnv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=10_000, help="real steps; three times as many are imagined")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
seed = arguments.seed
# More threads slow such small networks down
th.set_num_threads(1)

task = make_vec_env("Pendulum-v1", 4, seed=seed)
model = AGDPPO("MlpPolicy", task, n_steps=64, batch_size=256, gamma=0.9, learning_rate=1e-3, seed=seed, device="cpu")
model.learn(arguments.timesteps)

# Short episodes from recent real states: the errors of a world model add up. SB3 bootstraps at time limits
imagined = ImaginedVecEnv(model, n_envs=20, start_states="recent", max_episode_steps=25, seed=seed)
# One update for five imagined steps
settings = {"gamma": 0.95, "learning_rate": 1e-3, "gradient_steps": 4, "learning_starts": 1000}
agent = SAC("MlpPolicy", VecMonitor(imagined), policy_kwargs={"net_arch": [64, 64]}, seed=seed, device="cpu", **settings)
agent.learn(3 * arguments.timesteps)

# Whole episodes, from where real ones began to the time limit of the task
whole = VecMonitor(ImaginedVecEnv(model, n_envs=20, seed=seed))
for name, actor in (("AGDPPO", model), ("SAC", agent)):
    for place, env in (("in imagination", whole), ("in the real task", task)):
        mean, std = evaluate_policy(actor, env, n_eval_episodes=20)
        print(f"Return of {name} {place}: {mean:.0f} ± {std:.0f}")

"""
AGDPPO in PPO's place: train, save, load, play, imagine::

    python examples/drop_in.py
"""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=30_000)
arguments = parser.parse_args()
# More threads slow such small networks down
th.set_num_threads(1)

# Short rollouts: the real data of each update come from the present policy. Large minibatches take less time
settings = {"n_steps": 256, "batch_size": 256, "gamma": 0.99, "ent_coef": 0.01}
env = VecNormalize(make_vec_env("Hopper-v5", seed=0), gamma=settings["gamma"])
model = AGDPPO("MlpPolicy", env, seed=0, device="cpu", verbose=1, **settings)
model.learn(arguments.timesteps)

# The statistics of VecNormalize have a file of their own, as with PPO. So have the transitions of the world model,
# which are only needed to go on with training
model.save("hopper")
model.save_replay_buffer("hopper_transitions")
env.save("hopper_normalization.pkl")

env = VecNormalize.load("hopper_normalization.pkl", make_vec_env("Hopper-v5", seed=1))
env.training, env.norm_reward = False, False
model = AGDPPO.load("hopper", env=env, device="cpu")
mean, std = evaluate_policy(model, env, n_eval_episodes=5)
print(f"Return of 5 episodes: {mean:.0f} ± {std:.0f}")

env.reset()
segments = model.imagine(env.get_original_obs())
print(f"Imagined rewards of the next {model.horizon} steps: {segments.rewards[0].round(2)}")

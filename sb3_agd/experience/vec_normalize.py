"""The normalisation that SB3's VecNormalize applies between the environments and the agent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecMonitor, VecNormalize, VecVideoRecorder

from sb3_agd.experience.space_codecs import DictCodec, SpaceCodec

# Wrappers that change neither observations nor rewards
PASSIVE_WRAPPERS = (VecMonitor, VecCheckNan, VecVideoRecorder)
# Attributes of VecNormalize that hold its statistics
STATISTICS = ("obs_rms", "ret_rms")


@dataclass(frozen=True)
class Normalization:
    """
    VecNormalize's treatment of observations and rewards, without the environments, so that it can be saved. The
    statistics are the wrapper's own objects: they change whenever it updates them.

    :param observations: Statistics of the observations, of Dict observations by key. ``None`` if they are not normalised
    :param returns: Statistics of the discounted returns, ``None`` if rewards are not normalised
    :param clip_obs: Largest magnitude of normalised observations
    :param clip_reward: Largest magnitude of normalised rewards
    :param epsilon: Added to variances
    """

    observations: RunningMeanStd | dict[str, RunningMeanStd] | None
    returns: RunningMeanStd | None
    clip_obs: float
    clip_reward: float
    epsilon: float

    @classmethod
    def of(cls, env: VecNormalize) -> Normalization:
        """
        :param env: The wrapper
        :return: Its normalisation
        """
        observations = env.obs_rms if env.norm_obs else None
        returns = env.ret_rms if env.norm_reward else None
        return cls(observations, returns, env.clip_obs, env.clip_reward, env.epsilon)

    def observation_columns(self, codec: SpaceCodec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :param codec: Codec of the observations
        :return: Shift, scale and largest magnitude of each number of a flattened observation. Parts of Dict observations that
            are not normalised have 0, 1 and infinity
        """
        parts, sizes = [self.observations], [int(np.prod(codec.shape))]
        if isinstance(codec, DictCodec) and isinstance(self.observations, dict):
            parts, sizes = [self.observations.get(key) for key in codec.codecs], codec.element_sizes
        shift, scale, clip = np.zeros(sum(sizes)), np.ones(sum(sizes)), np.full(sum(sizes), np.inf)
        for part, end, size in zip(parts, np.cumsum(sizes), sizes, strict=True):
            if isinstance(part, RunningMeanStd):
                own = slice(end - size, end)
                shift[own], scale[own] = part.mean.reshape(-1), np.sqrt(part.var.reshape(-1) + self.epsilon)
                clip[own] = self.clip_obs
        return shift, scale, clip


def without_passive_wrappers(env: VecEnv | None) -> VecEnv | None:
    """
    :param env: Environments, ``None`` for none
    :return: The outermost wrapper that changes observations or rewards, or the innermost environment if none does
    """
    while isinstance(env, PASSIVE_WRAPPERS):
        env = env.venv
    return env


def normalizing_wrapper(env: VecEnv | None) -> VecNormalize | None:
    """
    :param env: Environments, ``None`` for none
    :return: Their VecNormalize, if the policy sees its output as it is
    """
    env = without_passive_wrappers(env)
    # The output of any other wrapper around VecNormalize, such as frame stacking, counts as raw
    return env if isinstance(env, VecNormalize) else None


def normalization_statistics(model: OnPolicyAlgorithm) -> dict[str, RunningMeanStd | dict[str, RunningMeanStd]]:
    """
    :param model: An algorithm
    :return: The statistics of its VecNormalize by name of the attribute, empty without one
    """
    env = model.get_vec_normalize_env()
    attributes = {} if env is None else vars(env)
    return {name: attributes[name] for name in STATISTICS if isinstance(attributes.get(name), (RunningMeanStd, dict))}


def largest_normalized(env: VecNormalize, observation: np.ndarray | dict[str, np.ndarray]) -> float:
    """
    :param env: A wrapper that normalises observations
    :param observation: Its output
    :return: Largest magnitude of what it has normalised
    """
    keys = env.norm_obs_keys or []
    parts = [observation[key] for key in keys] if isinstance(observation, dict) else [observation]
    return max(float(np.abs(part).max()) for part in parts)

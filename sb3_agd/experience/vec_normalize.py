"""What SB3's VecNormalize does between the environments and the agent."""

from __future__ import annotations

from dataclasses import dataclass

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecMonitor, VecNormalize, VecVideoRecorder

# Wrappers that hand on observations and rewards as they are
PASSING_WRAPPERS = (VecMonitor, VecCheckNan, VecVideoRecorder)
# Attributes of VecNormalize with what it learns
STATISTICS = ("obs_rms", "ret_rms")


@dataclass(frozen=True)
class Normalization:
    """
    What VecNormalize does to observations and rewards, without the environments, so that it can be saved. The
    statistics are VecNormalize's own objects and change with them.

    :param observations: Statistics of the observations, ``None`` if they are not normalised
    :param returns: Statistics of the discounted returns, ``None`` if rewards are not normalised
    :param clip_obs: Largest magnitude of normalised observations
    :param clip_reward: Largest magnitude of normalised rewards
    :param epsilon: Added to variances
    """

    observations: RunningMeanStd | None
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
        # A dictionary of statistics belongs to Dict observations, which have no agent here
        observations = env.obs_rms if env.norm_obs and isinstance(env.obs_rms, RunningMeanStd) else None
        returns = env.ret_rms if env.norm_reward else None
        return cls(observations, returns, env.clip_obs, env.clip_reward, env.epsilon)


def beneath_passing_wrappers(env: VecEnv | None) -> VecEnv | None:
    """
    :param env: Environments, if there are any
    :return: The outermost of their wrappers that does more than to hand on, or the environments themselves
    """
    while isinstance(env, PASSING_WRAPPERS):
        env = env.venv
    return env


def normalizing_wrapper(env: VecEnv | None) -> VecNormalize | None:
    """
    :param env: Environments, if there are any
    :return: Their normalising wrapper, if what it puts out is what the policy sees
    """
    env = beneath_passing_wrappers(env)
    # Where another wrapper (frame stacking, say) comes after it, what that one puts out counts as raw
    return env if isinstance(env, VecNormalize) else None


def normalization_statistics(model: OnPolicyAlgorithm) -> dict[str, RunningMeanStd | dict[str, RunningMeanStd]]:
    """
    :param model: An algorithm
    :return: The statistics that its VecNormalize learns, if it has one, by name of the attribute
    """
    env = model.get_vec_normalize_env()
    attributes = {} if env is None else vars(env)
    return {name: attributes[name] for name in STATISTICS if isinstance(attributes.get(name), (RunningMeanStd, dict))}

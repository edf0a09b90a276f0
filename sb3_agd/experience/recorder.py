"""From the steps of an SB3 on-policy algorithm to transitions in the replay buffer, in raw units."""

import math
import warnings
from typing import Any

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.space_codecs import SpaceCodec
from sb3_agd.experience.vec_envs import copied, innermost, is_same, same_objects
from sb3_agd.experience.vec_normalize import largest_normalized, normalization_statistics, normalizing_wrapper


class TransitionRecorder:
    """
    Stores each transition of an algorithm's environments in raw units: observations and rewards before ``VecNormalize``, the
    last state of an episode rather than the first one after the reset, and rewards before SB3 adds the value of the last
    state to them where a time limit ends an episode.

    :param model: The algorithm
    :param replay_buffer: Buffer that the transitions are added to
    :param observation_codec: Codec of the observation space
    :param action_codec: Codec of the action space
    """

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        replay_buffer: ReplayBuffer,
        observation_codec: SpaceCodec,
        action_codec: SpaceCodec,
    ):
        self.model = model
        self.replay_buffer = replay_buffer
        self.observation_codec = observation_codec
        self.action_codec = action_codec
        # Observation vectors of the environments' present states; empty if unknown: before training and after a reset
        self.current_observations = np.empty(0)
        # Position of the replay buffer at the start of the newest rollout
        self.rollout_start = replay_buffer.position.copy()
        # Rewards of each step of the newest rollout, in the critic's units
        self.rewards: list[np.ndarray] = []
        # Lowest and highest reward of the newest rollout, in raw units
        self.reward_range = (math.inf, -math.inf)
        # Last observations of episodes that a time limit ended, as the policy sees them, each with its step and environment
        self.cut_off_observations: list[tuple[tuple[int, int], Any]] = []
        # SB3's observations before and after the last recorded step, each with a copy: some wrappers write into them
        self._seen_observations: list[tuple[Any, Any]] = []
        # SB3's observations before the next step, unless other code replaces them
        self._expected_observations: Any = None
        # What the environments held after the last recorded step: see the two methods
        self._seen_newest: list[np.ndarray] = []
        self._seen_resets: list[dict] = []
        self._has_warned = False
        # Statistics of VecNormalize, each with a copy from before the newest rollout or reset
        self._statistics: list[tuple[RunningMeanStd, RunningMeanStd]] = []

    def close_episodes(self) -> None:
        """Close the unfinished episodes, because the environments were reset or are about to be."""
        self.replay_buffer.close_episodes()
        self.current_observations = np.empty(0)

    def has_seen(self, observations: Any) -> bool:
        """
        :param observations: SB3's last observations
        :return: Whether they are the object that SB3 held before or after the last recorded step, with the same values. SB3
            keeps the one from before the step if a callback stops the training
        """
        return any(observations is seen and is_same(observations, before) for seen, before in self._seen_observations)

    def knows_environments(self) -> bool:
        """
        Whether the environments are still in the states after the last recorded step, as far as can be known. Resets and steps
        by other code show in the observations of SB3, of ``VecNormalize`` and of ``DummyVecEnv``, and in the ``info`` objects
        of resets, which processes send anew with each step. Other vectorised environments may be moved unnoticed.
        """
        newest = self._newest_observations()
        return (
            any(is_same(self.model._last_obs, before) for _, before in self._seen_observations)
            and len(newest) == len(self._seen_newest)
            and all(map(np.array_equal, newest, self._seen_newest))
            and same_objects(self._resets(), self._seen_resets)
        )

    def _newest_observations(self) -> list[np.ndarray]:
        """Copies of the newest observations that ``DummyVecEnv`` and ``VecNormalize`` hold, if there are such."""
        held = [getattr(innermost(self.model.env), "buf_obs", {})]
        normalize = self.model.get_vec_normalize_env()
        # Not `get_original_obs`, which fails before the first reset
        held.append(getattr(normalize, "old_obs", {}))
        return [np.array(part) for each in held for part in (each.values() if isinstance(each, dict) else [each])]

    def _was_reset(self, dones: np.ndarray) -> bool:
        """
        :param dones: Whether the newest step ended the episode of each environment
        :return: Whether other code has reset an environment since the last recorded step, as far as ``DummyVecEnv`` shows it
        """
        if not isinstance(innermost(self.model.env), DummyVecEnv) or len(self._seen_resets) != len(dones):
            return False
        pairs = zip(self._resets(), self._seen_resets, dones, strict=True)
        return any(now is not before and not done for now, before, done in pairs)

    def _resets(self) -> list[dict]:
        """The ``info`` of each environment's last reset, if it is kept."""
        return list(getattr(innermost(self.model.env), "reset_infos", []))

    def keep_statistics(self) -> None:
        """Copy the statistics of VecNormalize, to restore them if an observation or reward is not finite."""
        statistics = normalization_statistics(self.model).values()
        # Dict observations have statistics for each key
        parts = [part for whole in statistics for part in (whole.values() if isinstance(whole, dict) else [whole])]
        self._statistics = [(now, now.copy()) for now in parts]

    def start_rollout(self) -> None:
        """
        Read the states that the environments are in, unless they are known from the last step, or other code has moved the
        environments without SB3's knowledge: the first transition is left out then.

        :raises ValueError: If an observation is not finite
        """
        has_moved = len(self.current_observations) > 0 and not self.knows_environments()
        if has_moved:
            self.close_episodes()
        if len(self.current_observations) == 0 and not (has_moved and self.has_seen(self.model._last_obs)):
            env = normalizing_wrapper(self.model.env)
            observations = self.model._last_obs if env is None else env.get_original_obs()
            self.current_observations = self._checked(self.observation_codec.encode(observations), "observation")
        self._expected_observations = self.model._last_obs
        self._seen_resets = self._resets()
        self.keep_statistics()
        self.rollout_start = self.replay_buffer.position.copy()
        self.rewards, self.cut_off_observations = [], []
        self.reward_range = (math.inf, -math.inf)

    def record(self, local_variables: dict[str, Any]) -> None:
        """
        Store one step of all environments.

        :param local_variables: Local variables of ``collect_rollouts`` right after the step, when rewards are still
            those of the environment (SB3 adds the value of truncated states to them later)
        :raises ValueError: If an observation, action or reward is not finite
        """
        dones, infos = np.asarray(local_variables["dones"], dtype=bool), local_variables["infos"]
        # Checked first: a bad action may be the cause of a bad observation or reward
        actions = self._checked(self.action_codec.encode(local_variables["clipped_actions"]), "action")
        env = normalizing_wrapper(self.model.env)
        if env is None:
            observations, rewards = local_variables["new_obs"], local_variables["rewards"]
        else:
            observations, rewards = env.get_original_obs(), env.get_original_reward()
        following = self._checked(self.observation_codec.encode(observations), "observation")
        reached = following.copy()
        terminations, is_known = dones.copy(), np.ones_like(dones)
        for index in np.flatnonzero(dones).tolist():
            terminations[index] = not infos[index].get("TimeLimit.truncated", False)
            if infos[index].get("terminal_observation") is None:
                is_known[index] = False
            else:
                last = infos[index]["terminal_observation"]
                reached[index] = self.observation_codec.encode(self._raw_terminal_observation(last))[0]
                if not terminations[index]:
                    self.cut_off_observations.append(((len(self.rewards), index), last))
        if not is_known.all():
            self._report_unknown_state(int(np.argmin(is_known)), has_others=bool(is_known.any()))
        rewards = self._checked(np.array(rewards, dtype=np.float32), "reward")
        reached = self._checked(reached, "observation")
        low, high = self.reward_range
        self.reward_range = (min(low, rewards.min().item()), max(high, rewards.max().item()))
        if not is_same(self.model._last_obs, self._expected_observations) or self._was_reset(dones):
            # Other code has moved the environments since the start of the rollout
            self.close_episodes()
        if len(self.current_observations) > 0:
            self.replay_buffer.add(self.current_observations, actions, rewards, reached, terminations, dones, is_known)
        self.current_observations = following
        self._remember(local_variables["new_obs"])
        self.rewards.append(local_variables["rewards"].astype(np.float32))

    def _remember(self, new_observations: Any) -> None:
        """
        Keep what shows later whether other code has moved the environments.

        :param new_observations: SB3's observations after the step
        """
        before = self.model._last_obs
        known = [pair for pair in self._seen_observations if pair[0] is before]
        # The copy made after the previous step is reused
        self._seen_observations = [
            known[-1] if known else (before, copied(before)),
            (new_observations, copied(new_observations)),
        ]
        self._expected_observations = new_observations
        self._seen_newest, self._seen_resets = self._newest_observations(), self._resets()

    def _report_unknown_state(self, index: int, has_others: bool) -> None:
        """
        :param index: Index of an environment that does not report the last observation of its episode
        :param has_others: Whether the transitions of other environments are stored in this step
        :raises ValueError: If no transition was stored yet, and none is in this step
        """
        problem = (
            f'The `info` of environment {index} lacks "terminal_observation", although its episode ended at step '
            f"{self.model.num_timesteps}: add the last observation of the episode there, as SB3's DummyVecEnv does"
        )
        if len(self.replay_buffer) == 0 and not has_others:
            raise ValueError(problem)
        if not self._has_warned:
            warnings.warn(f"{problem}. Until then, the world model learns nothing of the ends of episodes", stacklevel=2)
        self._has_warned = True

    def _raw_terminal_observation(
        self, terminal_observation: np.ndarray | dict[str, np.ndarray]
    ) -> np.ndarray | dict[str, np.ndarray]:
        """
        :param terminal_observation: Last observation of an episode, as VecNormalize returns it
        :return: The same in raw units
        """
        env = normalizing_wrapper(self.model.env)
        if env is None:
            return terminal_observation
        if env.norm_obs and largest_normalized(env, terminal_observation) >= env.clip_obs:
            # VecNormalize keeps the original of all observations but these
            warnings.warn(
                f"VecNormalize has clipped the last state of an episode (`clip_obs` {env.clip_obs:g}), and the world "
                "model learns the clipped one. Consider a higher `clip_obs`",
                stacklevel=2,
            )
        return env.unnormalize_obs(terminal_observation)

    def _checked(self, values: np.ndarray, what: str) -> np.ndarray:
        """
        :param values: Shape (n_envs, ...)
        :param what: Name of the values
        :return: The values
        :raises ValueError: If any of them is not finite
        """
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            # They are part of VecNormalize's statistics already
            for now, before in self._statistics:
                vars(now).update(vars(before))
            raise ValueError(
                f"NaN or infinite {what} in environment {index} at step {self.model.num_timesteps}: {values[index]}. "
                "Correct the environment, or find the cause with `VecCheckNan`."
            )
        return values

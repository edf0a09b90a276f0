"""Evaluation during training, for all benchmarks alike."""

import csv
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

# Evaluation episodes differ from those of training, and from those of the runs with other seeds. Environments count up from
# the seed that they are given
EVALUATION_SEEDS = 10_000
COLUMNS = ("timesteps", "return_mean", "return_std", "wall_seconds")


class Stopwatch:
    """A clock that stands still during measurements."""

    def __init__(self) -> None:
        self._paused_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Its time, from an arbitrary moment on."""
        return time.perf_counter() - self._paused_seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it stand still within the block."""
        before = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - before


# One for all callbacks of a process: those that measure do not know each other
STOPWATCH = Stopwatch()


class TimedEvaluation(BaseCallback):
    """
    Evaluate the deterministic policy on the way, in an environment of its own, and write a line of a CSV file each time.

    :param env_id: Name of the task
    :param seed: Seed of the training
    :param eval_freq: Environment steps between evaluations
    :param eval_episodes: Number of episodes of an evaluation
    :param file: The CSV file, which is overwritten. Its columns: ``timesteps``; mean and standard deviation of the
        returns over the episodes; seconds of training until then, without those of measurements
    """

    def __init__(self, env_id: str, seed: int, eval_freq: int, eval_episodes: int, file: str | Path):
        super().__init__()
        # One environment per episode: all of them act at once, which takes a third of the time
        self.eval_env: VecEnv = make_vec_env(env_id, n_envs=eval_episodes, seed=(seed + 1) * EVALUATION_SEEDS)
        self.eval_freq = eval_freq
        self.eval_episodes = eval_episodes
        self.file = Path(file)
        self._n_evaluations = 0

    def _init_callback(self) -> None:
        normalization = self.model.get_vec_normalize_env()
        if normalization is not None:
            same = {name: getattr(normalization, name) for name in ("norm_obs", "norm_obs_keys", "clip_obs", "epsilon")}
            self.eval_env = VecNormalize(self.eval_env, training=False, norm_reward=False, **same)
        self._write(COLUMNS, mode="w")

    def _on_training_start(self) -> None:
        self._start = STOPWATCH.seconds

    def _on_step(self) -> bool:
        if self.num_timesteps // self.eval_freq > self._n_evaluations:
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        """Evaluate the present policy and write the line."""
        training_seconds = STOPWATCH.seconds - self._start
        with STOPWATCH.paused():
            sync_envs_normalization(self.training_env, self.eval_env)
            returns, _ = evaluate_policy(self.model, self.eval_env, self.eval_episodes, return_episode_rewards=True)
            self._write([self.num_timesteps, *np.round([np.mean(returns), np.std(returns), training_seconds], 3)], mode="a")
        self._n_evaluations += 1

    def _write(self, row: Sequence[Any], mode: str) -> None:
        """
        :param row: A line of the file
        :param mode: ``"w"`` to begin the file, ``"a"`` to go on
        """
        with self.file.open(mode, newline="") as file:
            csv.writer(file).writerow(row)

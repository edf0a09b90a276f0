"""The zoo's experiments, with this package's hyperparameters and without hiding its errors."""

import argparse
import re
import shutil
import time
import traceback
from collections import OrderedDict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import Any

import numpy as np
import optuna
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import SimpleLinearSchedule
from sqlalchemy.exc import SQLAlchemyError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_agd.agdppo import AGDPPO, ResumableCheckpointCallback
from sb3_agd.checkpoint.save_util import save_vec_normalize
from sb3_agd.zoo.settings import PACKAGE, find_config, readable, split_config, with_objects

# Arguments of AGDPPO that may be schedules, besides those that the zoo knows
SCHEDULES = ("guidance_scale", "synthetic_ratio", "world_model_learning_rate")
LINEAR_SCHEDULE = re.compile(r"lin_(?P<initial>[0-9.e+-]+)")
# Methods that all of training, or of a trial, runs in
AROUND_TRAINING = ("learn", "_setup_learn", "collect_rollouts", "train", "objective")
# As SB3's callback names its files
CHECKPOINT_NAME = re.compile(r"(?P<prefix>.+)_(?P<steps>\d+)_steps\.zip")


def passed_through_package(error_traceback: TracebackType | None) -> bool:
    """
    :param error_traceback: Traceback of an error in training
    :return: Whether code of this package was at work when it was raised. Methods that all of training runs in do not count
    """
    return any(
        Path(frame.filename).is_relative_to(PACKAGE) and frame.name not in AROUND_TRAINING
        for frame in traceback.extract_tb(error_traceback)
    )


def prepare_database(url: str) -> None:
    """
    Create the tables of a study. Workers that start at the same moment get into each other's way there, so a few
    attempts are made; an error that stays comes up again when the study is opened.

    :param url: Address of the database
    """
    for _ in range(10):
        try:
            optuna.storages.RDBStorage(url).remove_session()
            return
        except SQLAlchemyError:
            time.sleep(0.3)


class SaveStatisticsCallback(BaseCallback):
    """
    Save the statistics of VecNormalize in each call. Unlike with the zoo's callback, a crash leaves those of the best agent.

    :param path: Path to the file
    """

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        vec_normalize = self.model.get_vec_normalize_env()
        if vec_normalize is not None:
            save_vec_normalize(vec_normalize, self.path)
        return True


class ResumedModel:
    """
    A model whose ``learn`` goes on with the run that it was loaded from. All other attributes are the model's.

    :param model: Loaded from a checkpoint
    """

    def __init__(self, model: AGDPPO):
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def learn(self, total_timesteps: int, **kwargs: Any) -> AGDPPO:
        """
        :param total_timesteps: Number of further steps
        :param kwargs: Further arguments of :meth:`AGDPPO.learn`
        :return: The model
        """
        return self.model.learn(total_timesteps, reset_num_timesteps=False, **kwargs)


class AGDExperimentManager(ExperimentManager):
    """
    ExperimentManager which looks for hyperparameters in this package first, where a trial of ``-optimize`` that fails in
    this package's code counts as failed, not as pruned, where AGDPPO's checkpoints can be resumed, and where a crash
    leaves the statistics of VecNormalize that were saved before. All arguments are the zoo's.

    :param args: Parsed command line
    :param algo: Name of the algorithm
    :param env_id: Name of the environment
    :param config: File of hyperparameters
    """

    def __init__(
        self, args: argparse.Namespace, algo: str, env_id: str, *other_args: Any, config: str | None = None, **kwargs: Any
    ):
        kwargs["config"] = find_config(config, algo, env_id)
        super().__init__(args, algo, env_id, *other_args, **kwargs)
        if self.trial_id == 0 and self.storage and self.study_name:
            # The zoo takes number 0 for no trial at all
            self.custom_hyperparams = {
                **self.load_trial(self.storage, self.study_name, 0),
                **(self.custom_hyperparams or {}),
            }

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        file, entry = split_config(self.config)
        if entry is None:
            try:
                return super().read_hyperparameters()
            except KeyError as error:
                if self.algo == "agdppo" and self._is_atari:
                    raise ValueError(f"AGDPPO does not support images: {file} has no settings for Atari") from error
                raise
        entries = yaml.safe_load(Path(file).read_text())
        if entry not in entries:
            raise ValueError(f"{file} has no entry {entry!r}, only {', '.join(entries)}")
        tasks, task = entries[entry], self.env_name.gym_id
        if task not in tasks and ("atari" if self._is_atari else "default") not in tasks:
            raise ValueError(f"Entry {entry!r} of {file} has no settings for {task}, only for {', '.join(tasks)}")
        given, printed = self.config, StringIO()
        with NamedTemporaryFile("w", suffix=".yml") as alone:
            yaml.safe_dump(tasks, alone)
            alone.flush()
            self.config = alone.name
            try:
                with redirect_stdout(printed):
                    return super().read_hyperparameters()
            finally:
                self.config = given
                # The user's file, and not one that is about to go
                print(printed.getvalue().replace(alone.name, given), end="")

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        processed = super()._preprocess_hyperparams(with_objects(hyperparams))
        if self._eval_env_kwargs_args is None:
            # The zoo evaluates without the arguments in settings
            self.eval_env_kwargs = self.env_kwargs
        return processed

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        self.args = argparse.Namespace(**readable(vars(self.args)))
        super()._save_config(OrderedDict(readable(dict(saved_hyperparams))))

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        for name in SCHEDULES:
            value = hyperparams.get(name)
            if isinstance(value, str):
                match = LINEAR_SCHEDULE.fullmatch(value)
                if match is None:
                    raise ValueError(
                        f"`{name}` must be a number, or text such as lin_16 for one that falls to 0, not {value!r}"
                    )
                hyperparams[name] = SimpleLinearSchedule(match["initial"])
        return ExperimentManager._preprocess_schedules(hyperparams)

    def hyperparameters_optimization(self) -> None:
        if self.storage is not None and "://" in self.storage:
            prepare_database(self.storage)
        super().hyperparameters_optimization()

    def objective(self, trial: optuna.Trial) -> float:
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            # The zoo prunes on ValueError and AssertionError, because hyperparameters can make the policy diverge
            error = pruned.__cause__
            if error is not None and passed_through_package(error.__traceback__):
                raise RuntimeError(f"Trial {trial.number} failed in sb3_agd: {error}") from error
            raise

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except (KeyError, IndexError) as error:
            trial = "" if trial_id is None else f" with a trial {trial_id}"
            raise ValueError(f"{storage} holds no study {study_name!r}{trial}") from error

    def create_callbacks(self) -> None:
        # Those of the user's settings stay as they are
        users = list(self.callbacks)
        super().create_callbacks()
        for index, callback in enumerate(self.callbacks):
            if callback in users:
                continue
            if isinstance(callback, EvalCallback):
                callback.callback_on_new_best = SaveStatisticsCallback(self.statistics_path)
            elif isinstance(callback, CheckpointCallback) and self.algo == "agdppo":
                self.callbacks[index] = ResumableCheckpointCallback(
                    callback.save_freq,
                    callback.save_path,
                    callback.name_prefix,
                    self.save_replay_buffer,
                    verbose=callback.verbose,
                )

    @property
    def statistics_path(self) -> str:
        """File with the statistics of VecNormalize, where ``enjoy`` looks for it."""
        return f"{self.params_path}/vecnormalize.pkl"

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        print(f"Saving to {self.save_path}")
        model.save(f"{self.save_path}/{self.env_name}")
        if self.save_replay_buffer and hasattr(model, "save_replay_buffer"):
            print("Saving replay buffer")
            model.save_replay_buffer(f"{self.save_path}/replay_buffer.pkl")
        if self.normalize:
            # The zoo's way of saving these empties the file first
            vec_normalize = model.get_vec_normalize_env()
            assert vec_normalize is not None
            save_vec_normalize(vec_normalize, self.statistics_path)

    def _beside_checkpoint(self, kind: str) -> Path | None:
        """
        :param kind: ``"vecnormalize"`` or ``"replay_buffer"``
        :return: The file of that kind that belongs to the checkpoint given as ``-i``, if that is one and there is a file
        """
        agent = Path(self.trained_agent)
        match = CHECKPOINT_NAME.fullmatch(agent.name)
        file = agent.with_name(f"{match['prefix']}_{kind}_{match['steps']}_steps.pkl") if match else None
        return file if file is not None and file.is_file() else None

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        statistics = self._beside_checkpoint("vecnormalize")
        if statistics is None:
            return super()._maybe_normalize(env, eval_env)
        print("Loading the checkpoint's VecNormalize stats")
        env = VecNormalize.load(str(statistics), env)
        if eval_env:
            env.training = False
            env.norm_reward = False
        return env

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.algo != "agdppo" or CHECKPOINT_NAME.fullmatch(Path(self.trained_agent).name) is None:
            model = super()._load_pretrained_agent(hyperparams, env)
            if isinstance(model, AGDPPO):
                # A checkpoint by another name is trained on like any agent
                model.run_state = None
            return model
        model = super()._load_pretrained_agent({**hyperparams, "force_reset": False}, env)
        assert isinstance(model, AGDPPO)
        if model.run_state is None:
            # A checkpoint of another callback: its episodes are over
            model._last_obs = None
            return model
        if model.num_timesteps >= self.n_timesteps:
            raise ValueError(
                f"{self.trained_agent} holds {model.num_timesteps} steps: nothing is left of a run of {self.n_timesteps}. "
                "Give the number of all steps as `-n`"
            )
        transitions = self._beside_checkpoint("replay_buffer")
        if transitions is None:
            print(
                "No transitions beside the checkpoint (`--save-replay-buffer`): the run will differ from an uninterrupted one"
            )
        else:
            model.load_replay_buffer(transitions, truncate_last_traj=False)
        for callback in self.callbacks:
            if isinstance(callback, EvalCallback) and callback.log_path == f"{self.save_path}/evaluations":
                self._continue_evaluations(callback, model.num_timesteps)
        print(f"Resuming the run at {model.num_timesteps} of {self.n_timesteps} steps")
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        try:
            if isinstance(model, AGDPPO) and model.run_state is not None:
                self._resume(model)
            else:
                super().learn(model)
        except ConnectionError as error:
            # Ctrl-C ends the environments in other processes as well. The zoo fails to close them then, and would not save
            # the agent. An error of the training itself comes first
            if not any(frame.name == "close" for frame in traceback.extract_tb(error.__traceback__)):
                raise
            if error.__context__ is not None:
                raise error.__context__ from None

    def _resume(self, model: AGDPPO) -> None:
        """
        :param model: Loaded from a checkpoint
        """
        # `learn` counts from here on, the user and the callbacks from the beginning of the run
        self.n_timesteps -= model.num_timesteps
        for callback in self.callbacks:
            callback.n_calls = model.num_timesteps // model.n_envs
        super().learn(ResumedModel(model))  # type: ignore[arg-type]

    def _continue_evaluations(self, callback: EvalCallback, n_timesteps: int) -> None:
        """
        Let the evaluations of a resumed run follow those before the checkpoint, so that plots have it whole, and keep the
        best agent so far.

        :param callback: Evaluates the run
        :param n_timesteps: Number of steps at the checkpoint
        :raises ValueError: If the evaluations before it have another number of episodes
        """
        folder = Path(self.trained_agent).parent
        file, best_agent = folder / "evaluations.npz", folder / "best_model.zip"
        statistics = folder / self.env_name / "vecnormalize.pkl"
        if not file.is_file():
            return
        with np.load(file) as saved:
            evaluations = dict(saved)
        means = evaluations["results"].mean(axis=1)
        is_before = evaluations["timesteps"] <= n_timesteps
        n_episodes = evaluations["results"].shape[1]
        if is_before.any() and n_episodes != callback.n_eval_episodes:
            raise ValueError(f"The run was evaluated on {n_episodes} episodes each time: give `--eval-episodes {n_episodes}`")
        for name, values in evaluations.items():
            kept = {"ep_lengths": "length"}.get(name, name)
            setattr(callback, f"evaluations_{kept}", [*values[is_before]])
        # That of a later evaluation has taken the place of the best one before the checkpoint
        if is_before[means.argmax()] and best_agent.is_file():
            callback.best_mean_reward = float(means.max())
            shutil.copy(best_agent, self.save_path)
            if statistics.is_file():
                shutil.copy(statistics, self.statistics_path)

"""PPO that can be interrupted, saved and resumed without loss."""

import io
import pathlib
import warnings
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_agd.checkpoint.resume import ResumeCallback, RunState, discard_stale_replies
from sb3_agd.checkpoint.save_util import FILE_FORMAT, explained_errors, newer_format, replaced_file, statistics_file
from sb3_agd.experience.vec_envs import innermost
from sb3_agd.experience.vec_normalize import normalizing_wrapper

SelfResumablePPO = TypeVar("SelfResumablePPO", bound="ResumablePPO")


class ResumablePPO(PPO):
    """
    Base of :class:`AGDPPO`: files are replaced only once new ones are complete, the environments are intact after an
    interrupt, and a run can go on from a checkpoint of :class:`ResumableCheckpointCallback`. All arguments are PPO's.
    """

    # The world model and the real transitions, which subclasses build
    imagination: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.file_format = FILE_FORMAT
        # Only in checkpoints, and between loading one and the start of training
        self.run_state: RunState | None = None
        # Whether the newest training ended with an interrupt or an error
        self.is_interrupted = False

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if self.run_state is None:
            return super()._init_callback(callback, progress_bar)
        return super()._init_callback(CallbackList([ResumeCallback(), as_callback(callback)]), progress_bar)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        normalization = self.get_vec_normalize_env()
        if reset_num_timesteps or self._last_obs is None:
            # A new run: the environments are about to be reset. If that is interrupted, the next training resets them
            self._last_obs = None
            self.run_state = None
        elif self.run_state is not None and self.run_state.environments is None:
            # The unfinished episodes are lost
            self._last_obs = None
            self.run_state.restore_statistics(self)
        elif self.run_state is None and normalization is not None and not hasattr(normalization, "old_obs"):
            # A model was loaded into new environments without a reset, and is no checkpoint with their state
            self._last_obs = None
        if self._last_obs is None:
            discard_stale_replies(self.env)
        self.imagination.recorder.keep_statistics()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except BaseException:
            # The environments may have taken a step that was not recorded: the next training resets them, unless they are
            # closed before
            discard_stale_replies(env)
            self._last_obs = None
            self.imagination.recorder.close_episodes()
            raise

    def learn(
        self: SelfResumablePPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "PPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfResumablePPO:
        self.is_interrupted = False
        try:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        except BaseException as error:
            self.is_interrupted = True
            if isinstance(error, (EOFError, ConnectionError)):
                self._name_dead_processes(error)
            raise

    def _name_dead_processes(self, error: EOFError | ConnectionError) -> None:
        """
        :param error: Error of the connection to an environment in another process
        :raises RuntimeError: If such processes have died
        """
        processes = getattr(innermost(self.env), "processes", [])
        # A pipe breaks a moment before its process is reported dead
        wait([process.sentinel for process in processes], timeout=1)
        dead = [index for index, process in enumerate(processes) if not process.is_alive()]
        if dead:
            raise RuntimeError(
                f"The processes of environments {dead} have died at step {self.num_timesteps}. The model is intact: it can be "
                "saved, or go on with `set_env` and `learn(..., reset_num_timesteps=False)`"
            ) from error

    @classmethod
    def load(
        cls: type[SelfResumablePPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfResumablePPO:
        """
        Load the model from a zip-file. All arguments are SB3's.

        :param path: Path to the file, or an open file
        :param env: Environment to go on in; ``None`` if only predictions and imagination are needed
        :param device: Device on which the code should run
        :param custom_objects: Objects to take in place of those in the file, by name
        :param print_system_info: Whether to print on which system the file was made, and the present one
        :param force_reset: Whether the environment is reset before training. With ``False``, a checkpoint of
            :class:`ResumableCheckpointCallback` goes on in the middle of its episodes
        :param kwargs: Settings to change
        :return: New model
        :raises OSError: If the file cannot be read
        :raises ValueError: If the file is damaged or does not fit
        """
        with explained_errors(path, cls.__name__):
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
            if kwargs.get("seed") is not None and (model.run_state is None or force_reset):
                # The private generator in the file comes from another seed, but a run that is resumed goes on with it
                model.set_random_seed(kwargs["seed"])
            if model.file_format > FILE_FORMAT:
                raise ValueError(newer_format(model.file_format))
            # It will be saved in the present one
            model.file_format = FILE_FORMAT
        if (
            model.env is not None
            and model.imagination.state.normalization is not None
            and normalizing_wrapper(model.env) is None
        ):
            file = statistics_file(path) if isinstance(path, (str, pathlib.Path)) else None
            warnings.warn(
                "The agent was trained with VecNormalize, and the environment has none: wrap it with `VecNormalize.load` and "
                f"{file or 'the file that `VecNormalize.save` wrote'}, or observations and rewards have other units",
                stacklevel=2,
            )
        return model

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. A file of that name is replaced
        only once the new one is complete.

        :param path: Path to the file, or an open file; missing folders are created
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        :raises OSError: If the file cannot be written
        """
        with replaced_file(path, suffix="zip") as file:
            super().save(cast(io.BufferedIOBase, file), exclude, include)


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """
    :param callback: What users give to ``learn``: ``None``, a function, a callback or a list
    :return: One callback
    """
    if isinstance(callback, list):
        return CallbackList(callback)
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)

"""Checkpoints from which a killed run continues as if it had never stopped."""

import random
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EventCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_agd.checkpoint.env_snapshot import Snapshot, vec_env_layers
from sb3_agd.checkpoint.save_util import save_vec_normalize
from sb3_agd.experience.vec_envs import innermost
from sb3_agd.experience.vec_normalize import normalization_statistics

# Noise matrices of gSDE
EXPLORATION = ("exploration_mat", "exploration_matrices")


def discard_stale_replies(env: VecEnv | None) -> None:
    """
    Empty the pipes of a ``SubprocVecEnv``. After an interrupt during a step or a reset they still hold replies, which would be
    read as replies to the next command.

    :param env: Environments that are about to be reset or closed
    """
    workers = innermost(env)
    if not isinstance(workers, SubprocVecEnv):
        return
    for remote in workers.remotes:
        # The pipe of a dead process is closed: the next command raises the error
        with suppress(EOFError, OSError):
            # Replies come in the order of the commands, and no other command returns a pair of spaces
            remote.send(("get_spaces", None))
            while not is_pair_of_spaces(remote.recv()):
                pass
    workers.waiting = False


def is_pair_of_spaces(reply: Any) -> bool:
    """
    :param reply: Reply of a process
    :return: Whether it consists of the spaces of its environment
    """
    return isinstance(reply, tuple) and len(reply) == 2 and all(isinstance(part, spaces.Space) for part in reply)


@dataclass
class RunState:
    """
    State of a run at the start of a rollout that the files of the model do not hold.

    :param environments: State of the environments, ``None`` if it cannot be read
    :param torch_state: State of PyTorch's random generator
    :param numpy_state: State of numpy's global random generator
    :param python_state: State of Python's random generator
    :param exploration: Noise matrices of gSDE, drawn for this rollout
    :param statistics: Those of VecNormalize, by name of the attribute
    """

    environments: Snapshot | None
    torch_state: th.Tensor
    numpy_state: Any
    python_state: Any
    exploration: dict[str, th.Tensor]
    statistics: dict[str, RunningMeanStd | dict[str, RunningMeanStd]]

    @classmethod
    def of(cls, model: Any) -> "RunState":
        """
        :param model: AGDPPO at the start of a rollout
        :return: The present state of its run
        """
        assert model.env is not None
        environments = None
        vec_env = innermost(model.env)
        if isinstance(vec_env, DummyVecEnv):
            environments = Snapshot.of(vec_env_layers(model.env))
            if environments.left_out:
                warnings.warn(
                    f"{environments.left_out} cannot be pickled: checkpoints do not hold the unfinished episodes, and a "
                    "resumed run will start new ones.",
                    stacklevel=2,
                )
                environments = None
        else:
            warnings.warn(
                f"The state of the environments in a {type(vec_env).__name__} cannot be read: checkpoints do not "
                "hold the unfinished episodes, and a resumed run will start new ones.",
                stacklevel=2,
            )
        distribution = model.policy.action_dist
        uses_sde = isinstance(distribution, StateDependentNoiseDistribution)
        return cls(
            environments,
            th.get_rng_state(),
            np.random.get_state(),
            random.getstate(),
            # A checkpoint of a GPU may be resumed without one
            {name: getattr(distribution, name).cpu() for name in EXPLORATION if uses_sde},
            normalization_statistics(model),
        )

    def restore_statistics(self, model: Any) -> None:
        """
        :param model: Model before its environments are reset, loaded from the checkpoint with this state
        :raises ValueError: If its environments lack the VecNormalize of the checkpoint
        """
        env = model.get_vec_normalize_env()
        if self.statistics and env is None:
            raise ValueError("The checkpoint was trained with VecNormalize: wrap the environments with it as they were then")
        for name, statistics in self.statistics.items():
            setattr(env, name, statistics)

    def restore(self, model: Any) -> None:
        """
        :param model: Model at the start of its first rollout, loaded from the checkpoint with this state
        :raises ValueError: If its environments are wrapped differently
        """
        assert model.env is not None
        if self.environments is not None:
            self.environments.restore(vec_env_layers(model.env))
        for name, matrix in self.exploration.items():
            setattr(model.policy.action_dist, name, matrix.to(model.device))
        th.set_rng_state(self.torch_state)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)


def check_sees_each_step(callback: BaseCallback) -> None:
    """
    Check that a callback is called at each step. Call this both when the callback is initialised and at the start of
    training, because a ``CallbackList`` sets the parent of its callbacks between the two.

    :param callback: A callback that counts steps and rollouts by itself
    :raises ValueError: If its parent, such as ``EveryNTimesteps``, calls it only at some steps
    """
    if isinstance(callback.parent, EventCallback):
        raise ValueError(
            f"{type(callback).__name__} must be called at each step, but {type(callback.parent).__name__} calls it only at "
            "some. Pass it to `learn` directly or in a list"
        )


class ResumeCallback(BaseCallback):
    """Restore the ``run_state`` of AGDPPO at the start of its first rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        if model.run_state is not None:
            model.run_state.restore(model)
            # Kept until here for the next training, in case this one fails earlier
            model.run_state = None


class ResumableCheckpointCallback(CheckpointCallback):
    """
    Save checkpoints of AGDPPO. A killed run continues from them bit for bit (on the CPU) as if it had never stopped::

        model.learn(100_000, callback=ResumableCheckpointCallback(10_000, "checkpoints"))
        # Afterwards, with an environment made in the same way
        model = AGDPPO.load("checkpoints/rl_model_50176_steps", env, force_reset=False)
        model.load_replay_buffer("checkpoints/rl_model_replay_buffer_50176_steps.pkl", truncate_last_traj=False)
        model.learn(100_000 - model.num_timesteps, reset_num_timesteps=False)

    Checkpoints are written between rollouts, and at the end of a complete training: at most ``save_freq`` steps and those of
    one rollout are lost. The agent's zip is written last: if it exists, the checkpoint is complete. The zip holds the
    environments with all of their attributes, which replace those of the environments that the run continues in.

    :param save_freq: Save checkpoints every ``save_freq`` call of the callback
    :param save_path: Path to the folder where the model will be saved
    :param name_prefix: Common prefix to the saved models
    :param save_replay_buffer: Save the transitions, too. Without them a run can continue, but not bit for bit
    :param save_vecnormalize: Save the ``VecNormalize`` statistics, too, for RL-Zoo's ``enjoy`` and your own use of the agent
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving model checkpoint
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str,
        name_prefix: str = "rl_model",
        save_replay_buffer: bool = True,
        save_vecnormalize: bool = True,
        verbose: int = 0,
    ):
        super().__init__(save_freq, save_path, name_prefix, save_replay_buffer, save_vecnormalize, verbose)
        self._due = False

    def _init_callback(self) -> None:
        check_sees_each_step(self)
        if not hasattr(self.model, "run_state"):
            raise ValueError(f"ResumableCheckpointCallback is for AGDPPO, not for {type(self.model).__name__}")
        super()._init_callback()

    def _on_training_start(self) -> None:
        check_sees_each_step(self)
        self._due = False

    def _on_step(self) -> bool:
        self._due = self._due or self.n_calls % self.save_freq == 0
        return True

    def _on_rollout_start(self) -> None:
        if self._due:
            self._save()
        self._due = False

    def _on_training_end(self) -> None:
        # RL-Zoo calls this after an interrupt, too, and if training failed before it began
        model: Any = getattr(self, "model", None)
        if model is None:
            return
        # Another callback may have ended the last rollout early
        if model.rollout_buffer.full and not model.is_interrupted:
            self._on_rollout_start()

    def _save(self) -> None:
        """Write all files of a checkpoint."""
        model: Any = self.model
        # A zip of that name belongs to another run. Next to the new files it would look like a complete checkpoint
        Path(self._checkpoint_path(extension="zip")).unlink(missing_ok=True)
        vec_normalize = model.get_vec_normalize_env()
        if self.save_vecnormalize and vec_normalize is not None:
            save_vec_normalize(vec_normalize, self._checkpoint_path("vecnormalize_", extension="pkl"))
        if self.save_replay_buffer:
            model.save_replay_buffer(self._checkpoint_path("replay_buffer_", extension="pkl"))
        path = self._checkpoint_path(extension="zip")
        model.run_state = RunState.of(model)
        try:
            model.save(path)
        finally:
            model.run_state = None
        if self.verbose >= 2:
            print(f"Saving model checkpoint to {path}")

"""Checkpoints from which a killed run goes on as if it had never stopped."""

import io
import pickle
import random
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_agd.agdppo.files import replaced_file

# Attributes of environments and wrappers that are no part of their state: the members of the class, an open log file
# and the entry in the registry
STATELESS = ("class_attributes", "results_writer", "spec")
# Noise matrices of gSDE
EXPLORATION = ("exploration_mat", "exploration_matrices")


def layers(env: VecEnv) -> list[Any]:
    """
    :param env: Vectorised environment whose innermost one is a ``DummyVecEnv``
    :return: All of its wrappers, the innermost vectorised environment, and of each of its environments all wrappers and
        the innermost one
    """
    found: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    found.append(env)
    assert isinstance(env, DummyVecEnv)
    for single in env.envs:
        while isinstance(single, gym.Wrapper):
            found.append(single)
            single = single.env
        found.append(single)
    return found


def simulators(found: list[Any]) -> list[tuple[Any, Any]]:
    """
    :param found: Environments and wrappers
    :return: The MuJoCo models in them, each with its data
    """
    attributes = [vars(layer) for layer in found]
    # By name: whoever has no MuJoCo needs none
    return [(own["model"], own["data"]) for own in attributes if type(own.get("data")).__name__ == "MjData" and "model" in own]


class Snapshot(cloudpickle.Pickler):
    """
    Pickler for the attributes of environments, to which the environments themselves are fixed points: many attributes
    refer to them, and gymnasium would pickle them as nothing but the arguments of their constructors.

    :param file: File to write to
    :param fixed: Objects that are there again when the file is read, in the same order
    """

    def __init__(self, file: io.BytesIO, fixed: Iterable[Any]):
        super().__init__(file)
        self.positions = {id(item): position for position, item in enumerate(fixed)}

    def persistent_id(self, item: Any) -> int | None:
        return self.positions.get(id(item))


class Revival(pickle.Unpickler):
    """
    Counterpart of :class:`Snapshot`.

    :param file: File to read
    :param fixed: The present fixed points
    """

    def __init__(self, file: io.BytesIO, fixed: list[Any]):
        super().__init__(file)
        self.fixed = fixed

    def persistent_load(self, position: Any) -> Any:
        return self.fixed[position]


def dumps(item: Any, fixed: list[Any]) -> bytes | None:
    """
    :param item: What to pickle
    :param fixed: Fixed points
    :return: The pickle, ``None`` if there can be none
    """
    file = io.BytesIO()
    try:
        Snapshot(file, fixed).dump(item)
    except Exception:  # What cannot be pickled raises errors of many kinds
        return None
    return file.getvalue()


@dataclass
class EnvironmentState:
    """
    State of environments in the midst of their episodes, with that of all wrappers.

    :param types: Names of the classes of the layers
    :param attributes: Pickle of the attributes of each layer
    :param simulations: Data of the MuJoCo simulators
    """

    types: list[str]
    attributes: bytes
    simulations: list[Any]

    @classmethod
    def of(cls, env: VecEnv) -> "EnvironmentState":
        """
        :param env: Vectorised environment
        :return: Its present state. A warning names what cannot be stored
        """
        found = layers(env)
        fixed = cls._fixed_points(found)
        stored: list[dict[str, Any]] = []
        left_out = []
        for layer in found:
            candidates = {name: value for name, value in vars(layer).items() if name not in STATELESS}
            unfit = [name for name, value in candidates.items() if dumps(value, fixed) is None]
            left_out += [f"{type(layer).__name__}.{name}" for name in unfit]
            stored.append({name: value for name, value in candidates.items() if name not in unfit})
        if left_out:
            warnings.warn(
                f"{left_out} cannot be pickled and are not part of checkpoints: if they change from step to step, a "
                "resumed run will differ from one that was not interrupted.",
                stacklevel=2,
            )
        attributes = dumps(stored, fixed)
        assert attributes is not None
        simulations = [data for _, data in simulators(found)]
        return cls([type(layer).__name__ for layer in found], attributes, simulations)

    @staticmethod
    def _fixed_points(found: list[Any]) -> list[Any]:
        """
        :param found: Layers
        :return: The layers and the simulators in them: renderers refer to these
        """
        return [*found, *(part for simulator in simulators(found) for part in simulator)]

    def restore(self, env: VecEnv) -> None:
        """
        :param env: Vectorised environment that is made and wrapped like the one that the state was taken from
        :raises ValueError: If it is not
        """
        found = layers(env)
        types = [type(layer).__name__ for layer in found]
        if types != self.types:
            raise ValueError(
                f"The run cannot be resumed: its environments were wrapped as {self.types}, the present ones as {types}"
            )
        fixed = self._fixed_points(found)
        for layer, attributes in zip(found, Revival(io.BytesIO(self.attributes), fixed).load(), strict=True):
            vars(layer).update(attributes)
        for (model, data), stored in zip(simulators(found), self.simulations, strict=True):
            import mujoco

            mujoco.mj_copyData(data, model, stored)


@dataclass
class RunState:
    """
    What a run needs at the start of a rollout, besides the files of the model, to go on as if it had never stopped.

    :param environments: State of the environments, ``None`` if it is out of reach
    :param torch_state: State of PyTorch's random generator
    :param numpy_state: State of numpy's global random generator
    :param python_state: State of Python's random generator
    :param exploration: Noise matrices of gSDE, drawn for this rollout
    """

    environments: EnvironmentState | None
    torch_state: th.Tensor
    numpy_state: Any
    python_state: Any
    exploration: dict[str, th.Tensor]

    @classmethod
    def of(cls, model: OnPolicyAlgorithm) -> "RunState":
        """
        :param model: Model at the start of a rollout
        :return: The present state of its run
        """
        assert model.env is not None
        environments = None
        if isinstance(model.env.unwrapped, DummyVecEnv):
            environments = EnvironmentState.of(model.env)
        else:
            warnings.warn(
                f"What goes on in a {type(model.env.unwrapped).__name__} is out of reach: checkpoints do not hold the "
                "episodes under way, and a resumed run will begin with new ones.",
                stacklevel=2,
            )
        distribution = model.policy.action_dist
        uses_sde = isinstance(distribution, StateDependentNoiseDistribution)
        return cls(
            environments,
            th.get_rng_state(),
            np.random.get_state(),
            random.getstate(),
            {name: getattr(distribution, name) for name in EXPLORATION if uses_sde},
        )

    def restore(self, model: OnPolicyAlgorithm) -> None:
        """
        :param model: Model at the start of its first rollout, loaded from the checkpoint with this state
        :raises ValueError: If its environments are others
        """
        assert model.env is not None
        if self.environments is not None:
            self.environments.restore(model.env)
        for name, matrix in self.exploration.items():
            setattr(model.policy.action_dist, name, matrix.to(model.device))
        th.set_rng_state(self.torch_state)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)


class ResumeCallback(BaseCallback):
    """
    Put a run back into the state that it was in, at the start of its first rollout.

    :param state: The state
    """

    def __init__(self, state: RunState):
        super().__init__()
        self.state: RunState | None = state

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.state is not None:
            assert isinstance(self.model, OnPolicyAlgorithm)
            self.state.restore(self.model)
            self.state = None


class ResumableCheckpointCallback(CheckpointCallback):
    """
    Save checkpoints of AGDPPO from which a killed run goes on bit for bit (on the CPU) as if it had never stopped::

        model.learn(100_000, callback=ResumableCheckpointCallback(10_000, "checkpoints"))
        # Afterwards, with an environment made in the same way
        model = AGDPPO.load("checkpoints/rl_model_50176_steps", env, force_reset=False)
        model.load_replay_buffer("checkpoints/rl_model_replay_buffer_50176_steps.pkl", truncate_last_traj=False)
        model.learn(100_000 - model.num_timesteps, reset_num_timesteps=False)

    Each is written at the start of the next rollout, when nothing is half done, with the agent's zip last: where there
    is one, the checkpoint is complete.

    :param save_freq: Save checkpoints every ``save_freq`` call of the callback
    :param save_path: Path to the folder where the model will be saved
    :param name_prefix: Common prefix to the saved models
    :param save_replay_buffer: Save the transitions, too. Without them a run can go on, but not as it would have
    :param save_vecnormalize: Save the ``VecNormalize`` statistics, too, for ``enjoy`` and the like
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

    def _on_step(self) -> bool:
        self._due = self._due or self.n_calls % self.save_freq == 0
        return True

    def _on_rollout_start(self) -> None:
        if self._due:
            self._save()
        self._due = False

    def _save(self) -> None:
        """Write all files of a checkpoint."""
        model: Any = self.model
        vec_normalize = model.get_vec_normalize_env()
        if self.save_vecnormalize and vec_normalize is not None:
            with replaced_file(self._checkpoint_path("vecnormalize_", extension="pkl"), suffix="pkl") as file:
                pickle.dump(vec_normalize, file)
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

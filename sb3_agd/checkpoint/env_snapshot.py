"""States of environments in the middle of their episodes, with all of their wrappers."""

import copy
import io
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

# Attributes of environments and wrappers that are not part of their state: the members of the class, an open log file,
# the entry in the registry and the renderer
STATELESS = ("class_attributes", "results_writer", "spec", "mujoco_renderer")


def env_layers(env: gym.Env) -> list[Any]:
    """
    :param env: Environment
    :return: All of its wrappers and the innermost environment
    """
    found: list[Any] = []
    while isinstance(env, gym.Wrapper):
        found.append(env)
        env = env.env
    return [*found, env]


def vec_env_layers(env: VecEnv) -> list[Any]:
    """
    :param env: Vectorised environment whose innermost one is a ``DummyVecEnv``
    :return: All of its wrappers, the innermost vectorised environment, and the layers of each of its environments
    """
    found: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    assert isinstance(env, DummyVecEnv)
    return [*found, env, *(layer for single in env.envs for layer in env_layers(single))]


def simulators(layers: list[Any]) -> list[tuple[Any, Any]]:
    """
    :param layers: Environments and wrappers
    :return: The MuJoCo models in them, each with its data
    """
    attributes = [vars(layer) for layer in layers]
    # By name, because MuJoCo may not be installed
    return [(own["model"], own["data"]) for own in attributes if type(own.get("data")).__name__ == "MjData" and "model" in own]


def fixed_points(layers: list[Any]) -> list[Any]:
    """
    :param layers: Environments and wrappers
    :return: They and the simulators in them, which renderers refer to
    """
    return [*layers, *(part for simulator in simulators(layers) for part in simulator)]


class EnvironmentPickler(cloudpickle.Pickler):
    """
    Pickler for the attributes of environments. Many attributes refer to the environments themselves. These are fixed points,
    stored as references, because gymnasium would pickle only the arguments of their constructors.

    :param file: File to write to
    :param fixed: Objects that have counterparts when the file is read, in the same order
    """

    def __init__(self, file: io.BytesIO, fixed: Iterable[Any]):
        super().__init__(file)
        self.positions = {id(item): position for position, item in enumerate(fixed)}

    def persistent_id(self, item: Any) -> int | None:
        position = self.positions.get(id(item))
        if position is None and isinstance(item, gym.Env):
            raise pickle.PicklingError("An environment within an environment, but no wrapper of it")
        return position


class EnvironmentUnpickler(pickle.Unpickler):
    """
    Counterpart of :class:`EnvironmentPickler`.

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
    :param item: Object to pickle
    :param fixed: Fixed points
    :return: The pickle, ``None`` if the object cannot be pickled and read again
    """
    file = io.BytesIO()
    try:
        EnvironmentPickler(file, fixed).dump(item)
        # Some objects can be written but not read
        EnvironmentUnpickler(io.BytesIO(file.getvalue()), fixed).load()
    except Exception:  # Objects that cannot be pickled raise errors of many kinds
        return None
    return file.getvalue()


class RestoreError(ValueError):
    """Environments that cannot be restored to a state."""


@dataclass
class Snapshot:
    """
    State of environments and wrappers.

    :param types: Names of the classes of the layers
    :param attributes: Pickle of the attributes of each layer
    :param simulations: Data of the MuJoCo simulators
    :param left_out: Names of the attributes that are not stored because they cannot be pickled
    """

    types: list[str]
    attributes: bytes
    simulations: list[Any]
    left_out: list[str]

    @classmethod
    def of(cls, layers: list[Any]) -> "Snapshot":
        """
        :param layers: Environments and wrappers
        :return: Their present state
        """
        fixed = fixed_points(layers)
        candidates = [{name: value for name, value in vars(layer).items() if name not in STATELESS} for layer in layers]
        attributes, left_out = dumps(candidates, fixed), []
        if attributes is None:
            for layer, own in zip(layers, candidates, strict=True):
                for name in [name for name, value in own.items() if dumps(value, fixed) is None]:
                    left_out.append(f"{type(layer).__name__}.{name}")
                    del own[name]
            attributes = dumps(candidates, fixed)
            assert attributes is not None
        simulations = [copy.copy(data) for _, data in simulators(layers)]
        return cls([type(layer).__name__ for layer in layers], attributes, simulations, left_out)

    def restore(self, layers: list[Any]) -> None:
        """
        :param layers: Environments that are made and wrapped like those that the state was taken from
        :raises RestoreError: If they have other wrappers or MuJoCo models
        """
        types = [type(layer).__name__ for layer in layers]
        if types != self.types:
            raise RestoreError(f"The environments cannot be restored: they were wrapped as {self.types}, now as {types}")
        loaded = EnvironmentUnpickler(io.BytesIO(self.attributes), fixed_points(layers)).load()
        for layer, attributes in zip(layers, loaded, strict=True):
            vars(layer).update(attributes)
        for (model, data), stored in zip(simulators(layers), self.simulations, strict=True):
            import mujoco

            try:
                mujoco.mj_copyData(data, model, stored)
            except mujoco.FatalError as error:
                raise RestoreError("The environments cannot be restored: they have another MuJoCo model now") from error

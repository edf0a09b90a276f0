"""What GuidanceCallback has learned, in a file."""

import io
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_agd.agdppo.imagination_mixin import ImaginationMixin
from sb3_agd.checkpoint.save_util import FILE_FORMAT, explained_errors, newer_format, replaced_file
from sb3_agd.imagination import Imagination, Settings

SelfSavedCallback = TypeVar("SelfSavedCallback", bound="SavedCallback")
SPACES = ("observation_space", "action_space")


class SavedCallback(ImaginationMixin, BaseCallback):
    """
    Base of :class:`GuidanceCallback`: it is saved and loaded in the manner of SB3's algorithms.

    :param verbose: Verbosity level
    """

    def save(self, path: str | Path | io.BufferedIOBase) -> None:
        """
        Save the settings, the world model with its statistics and optimiser, and the private random generator in a zip-file.
        A file of that name is replaced only once the new one is complete. The algorithm has a file of its own, and so have the
        real transitions (:meth:`save_replay_buffer`), which only further training needs.

        :param path: Path to the file, or an open file; missing folders are created
        :raises OSError: If the file cannot be written
        :raises ValueError: If there was no training yet
        """
        imagination, world_model = self._present_imagination, self.world_model
        data = {each.name: getattr(self, each.name) for each in fields(Settings)}
        data |= {name: getattr(imagination.model, name) for name in SPACES}
        data |= {"verbose": self.verbose, "state": imagination.state}
        data |= {"file_format": FILE_FORMAT, "saved_by": "GuidanceCallback"}
        parameters = {"world_model": world_model.state_dict(), "world_model.optimizer": world_model.optimizer.state_dict()}
        with replaced_file(path, suffix="zip") as file:
            save_to_zip_file(file, data, parameters)  # type: ignore[arg-type]

    @classmethod
    def load(
        cls: type[SelfSavedCallback],
        path: str | Path | io.BufferedIOBase,
        model: OnPolicyAlgorithm,
        custom_objects: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SelfSavedCallback:
        """
        Load the callback from a zip-file, to imagine with it at once or to go on with training.

        :param path: Path to the file, or an open file
        :param model: The algorithm that it was trained with, loaded from its own file for example
        :param custom_objects: Objects to take in place of those in the file, by name
        :param kwargs: Settings to change
        :return: New callback, without transitions: see :meth:`load_replay_buffer`
        :raises OSError: If the file cannot be read
        :raises ValueError: If the file is damaged or does not fit
        """
        if not isinstance(model, OnPolicyAlgorithm):
            raise ValueError(f"`model` must be an on-policy algorithm, not {type(model).__name__}")
        with explained_errors(path, cls.__name__):
            # SB3 declares the parameters to be tensors
            content: Any = load_from_zip_file(path, device=model.device, custom_objects=custom_objects)
            data, parameters, _ = content
            if data is None or "state" not in data:
                raise ValueError("it holds no GuidanceCallback")
            if data["file_format"] > FILE_FORMAT:
                raise ValueError(newer_format(data["file_format"]))
            for name in SPACES:
                if data[name] != getattr(model, name):
                    raise ValueError(f"its `{name}` is {data[name]}, that of the model is {getattr(model, name)}")
            arguments = {each.name: data[each.name] for each in fields(Settings)} | {"verbose": data["verbose"]} | kwargs
            callback = cls(**arguments)
            callback.imagination = Imagination(model, Settings.of(callback), data["state"])
            callback.world_model.load_state_dict(parameters["world_model"])
            callback.world_model.optimizer.load_state_dict(parameters["world_model.optimizer"])
        return callback

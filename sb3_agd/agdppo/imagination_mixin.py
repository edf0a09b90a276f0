"""What AGDPPO and GuidanceCallback have in common for users: world model, real transitions and imagined segments."""

import copy
import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.save_util import open_path

from sb3_agd.checkpoint.save_util import replaced_file
from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.user_inputs import batched, encoded_actions
from sb3_agd.imagination import Guide, Imagination, Settings
from sb3_agd.world_model import DiffusionWorldModel, Segments


class ImaginationMixin:
    """Base of :class:`AGDPPO` and :class:`GuidanceCallback`, which have each setting as an attribute."""

    # A callback has none before its first training
    imagination: Imagination | None
    verbose: int

    def _keep_settings(self, arguments: dict[str, Any]) -> None:
        """
        :param arguments: Arguments of the constructor. The settings among them become attributes, with copies of what a user
            may change for the next model, and of what training changes
        """
        settings = {each.name: arguments[each.name] for each in fields(Settings)}
        copies = {name: copy.deepcopy(settings[name]) for name in ("world_model_kwargs", "action_sampler")}
        vars(self).update(settings | copies)

    @property
    def _present_imagination(self) -> Imagination:
        """World model, real transitions and agent. A ``ValueError`` says that there are none yet."""
        if self.imagination is None:
            raise ValueError(f"{type(self).__name__} has no world model before its first training: call `learn` with it")
        return self.imagination

    @property
    def world_model(self) -> DiffusionWorldModel:
        """The diffusion world model. A callback has it as soon as training begins."""
        return self._present_imagination.world_model

    @property
    def replay_buffer(self) -> ReplayBuffer:
        """The real transitions that the world model is trained on."""
        return self._present_imagination.replay_buffer

    def imagine(
        self,
        observations: np.ndarray | dict[str, np.ndarray],
        guidance: str | Guide | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        actions: np.ndarray | None = None,
        horizon: int | None = None,
    ) -> Segments[np.ndarray]:
        """
        Imagine one segment from each of the given states with the current policy, or with given actions. With
        ``guidance_mode="select"``, training takes start states from guided segments and learns from unguided ones
        (``guidance="none"``).

        :param observations: Observations as the environment gives them, not as ``VecNormalize`` does, shape
            (B, observation_dim), or a dictionary of such arrays. A single one is a batch of one. If another wrapper is around
            ``VecNormalize``, frame stacking for example, observations as that wrapper returns them
        :param guidance: See :class:`Settings`; ``None`` for the model's own
        :param guidance_scale: Strength of the guidance, taken as it is; ``None`` for the model's own at the current
            progress
        :param seed: Seed of all noise; ``None`` to draw on from the private generator
        :param actions: Actions to take in place of the policy's, as the environment receives them, shape (B, H, action_dim),
            for example to plan. Such segments are not guided
        :param horizon: Number of transitions, ``None`` for that of the model, or of the given actions. The network
            ``"recurrent"`` imagines any number
        :return: Segments in raw environment units: ``observations`` (B, H + 1, observation_dim) with the given states first,
            ``actions`` (B, H, action_dim) as the environment would receive them, ``rewards``, ``terminations`` and ``mask``,
            each (B, H). What comes after a termination is masked. Dict observations are flattened, their parts in the order of
            the space's keys
        :raises ValueError: If an argument is invalid, or the world model was not trained yet
        """
        imagination = self._present_imagination
        elements = batched(imagination.observation_codec, imagination.observation_codec.flatten(observations))
        starts = imagination.start_states(elements)
        progress_remaining = max(0.0, imagination.model._current_progress_remaining)
        settings = Settings.of(self)
        imagination.settings.check_successor(settings)
        chosen = settings.guidance_at(progress_remaining, guidance, guidance_scale)
        if actions is None:
            imagination.check_trained()
            segments, _ = imagination.imagine(starts, chosen, imagination.generator(seed), horizon)
        else:
            for name, value in (("guidance", guidance), ("guidance_scale", guidance_scale), ("horizon", horizon)):
                if value is not None:
                    raise ValueError(f"`{name}` cannot be given with `actions`, which determine the segments")
            space = imagination.model.action_space
            given = encoded_actions(imagination.action_codec, space, np.asarray(actions), len(starts))
            imagination.check_trained()
            segments = imagination.world_model.predict(starts, given, imagination.generator(seed))
        states = imagination.observation_codec.elements(segments.observations)
        states[:, 0] = elements.reshape(len(elements), -1)
        taken = imagination.action_codec.elements(segments.actions)
        return replace(segments.map(lambda array: array.cpu().numpy()), observations=states, actions=taken)

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """
        Save the real transitions as plain arrays (npz, whatever the name of the file). A file of that name is replaced
        only once the new one is complete.

        :param path: Path to the file, or an open file; missing folders are created
        :raises OSError: If the file cannot be written
        """
        with replaced_file(path, suffix="npz") as file:
            self.replay_buffer.save(file)

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load the real transitions.

        :param path: Path to the file, or an open file
        :param truncate_last_traj: Whether the episodes that were unfinished when the file was written count as
            interrupted. Only ``False`` if the environments continue from the same states
        :raises ValueError: If the file is damaged or comes from other spaces or settings; the present transitions
            are kept then
        """
        imagination = self._present_imagination
        file = open_path(path, "r", verbose=self.verbose, suffix="npz")
        try:
            imagination.replay_buffer.load(file)
        except ValueError as error:
            raise ValueError(f"Cannot load transitions from {path}: {error}") from error
        finally:
            if isinstance(path, (str, Path)):
                file.close()
        if truncate_last_traj:
            imagination.replay_buffer.close_episodes()
        imagination.transitions_loaded()

"""The settings of imagination and guidance, each in one place: default, check, documentation, and whether it may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import Schedule

from sb3_agd.imagination.action_sampler import ActionSampler
from sb3_agd.imagination.guides import GUIDES, Guide
from sb3_agd.imagination.start_states import START_STATES
from sb3_agd.world_model import DiffusionWorldModel
from sb3_agd.world_model.termination import TerminationFn
from sb3_agd.world_model.validation import check_arguments, check_choice, check_integer, check_number

# Raises a ValueError that names the setting: (name, value)
Check = Callable[[str, Any], object]
GUIDANCE_MODES = ("select", "gradient")
POLICY_DATA = ("mixed", "imagined")


def copied_dictionaries(value: Any) -> Any:
    """
    :param value: Any value
    :return: The same with copies of all dictionaries. What they hold stays the same: copies of objects may be unequal
    """
    return {name: copied_dictionaries(part) for name, part in value.items()} if isinstance(value, dict) else value


def make_guide(guidance: str | Guide) -> Guide | None:
    """
    :param guidance: Name of a guide, ``"none"``, or a guide
    :return: The guide, ``None`` for no guidance
    :raises ValueError: If there is no such guide
    """
    if isinstance(guidance, Guide):
        return guidance
    if guidance == "none":
        return None
    if not isinstance(guidance, str) or guidance not in GUIDES:
        raise ValueError(f"`guidance` must be one of {[*GUIDES, 'none']} or an instance of `Guide`, not {guidance!r}")
    return GUIDES[guidance]()


def check_sampler(name: str, value: Any) -> None:
    """
    :param name: Name of the setting
    :param value: Its value
    :raises ValueError: If it is neither ``None`` nor a sampler of actions
    """
    if value is not None and not isinstance(value, ActionSampler):
        raise ValueError(f"`{name}` must be None or an instance of `ActionSampler`, not {value!r}")


def check_dictionary(name: str, value: Any) -> None:
    """
    :param name: Name of the setting
    :param value: Its value
    :raises ValueError: If it is neither ``None`` nor a dictionary
    """
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be None or a dictionary, not {value!r}")


def scheduled_value(name: str, value: float | Schedule, progress_remaining: float, positive: bool = False) -> float:
    """
    :param name: Name of a setting
    :param value: A number, or a function of the remaining progress
    :param progress_remaining: From 1 to 0
    :param positive: Whether zero is invalid
    :return: The number at that progress
    :raises ValueError: If it is not finite, or is negative
    """
    number: Any = value(progress_remaining) if callable(value) else value
    is_valid = isinstance(number, (int, float, np.number)) and np.isfinite(number) and number >= 0
    if not is_valid or (positive and number == 0):
        expected = "a positive number" if positive else "a number of at least 0"
        raise ValueError(f"`{name}` must be {expected} or a schedule of such numbers, not {number!r}")
    return float(number)


def check_schedule(name: str, value: Any, positive: bool = False) -> None:
    """
    :param name: Name of the setting
    :param value: Its value
    :param positive: Whether it must begin above zero
    :raises ValueError: If it is no valid number, or a schedule that does not begin with one
    """
    scheduled_value(name, value, 1.0, positive)


def checked(check: Check | None = None, changeable: bool = True) -> dict[str, Any]:
    """
    :param check: Check of a value, ``None`` if the world model checks it
    :param changeable: Whether it may change during training. If not, the world model or the replay buffer is built with it
    :return: Metadata of a field of :class:`Settings`
    """
    return {"check": check, "changeable": changeable}


@dataclass(frozen=True)
class Guidance:
    """
    How imagined segments are guided.

    :param guide: The guide, ``None`` for no guidance
    :param mode: ``"select"`` or ``"gradient"``, see :class:`Settings`
    :param scale: Strength
    :param n_candidates: Number of candidates, with ``"select"``
    """

    guide: Guide | None = None
    mode: str = "select"
    scale: float = 0.0
    n_candidates: int = 1

    @property
    def selects(self) -> bool:
        """Whether the guide selects among candidates."""
        return self.guide is not None and self.scale > 0 and self.mode == "select"

    @property
    def moves(self) -> bool:
        """Whether the guide moves states along a gradient."""
        return self.guide is not None and self.scale > 0 and self.mode == "gradient"


NO_GUIDANCE = Guidance()


@dataclass(frozen=True)
class Settings:
    """
    Settings of :class:`AGDPPO` beyond PPO's arguments, and of :class:`GuidanceCallback`. Both take them as keyword arguments
    and keep them as attributes of the same names.

    :param guidance: Objective of guided segments: ``"sag"`` or ``"eag"`` (Sigmoid or Exponential Advantage Guidance),
        ``"reward"``, ``"none"``, or a :class:`Guide` of your own
    :param guidance_mode: How the objective acts. ``"select"``: one of ``n_candidates`` segments is drawn, with a probability
        that grows with its objective. In training, a second segment is imagined without guidance from a random state along
        it, and the policy learns from that one only. ``"gradient"``: the gradient of the objective moves the denoised
        states, and the policy learns from these segments, as in the paper
    :param guidance_scale: Strength of the guidance, per standard deviation of the advantage: segments are reweighted by
        ``exp(guidance_scale * objective)``. In training it is multiplied by the explained variance of the critic, so
        that an untrained critic has no influence. It can be a function of the current progress remaining (from 1
        to 0)
    :param n_candidates: Candidate segments for each real start state, with ``guidance_mode="select"``
    :param horizon: Number of transitions of an imagined segment, best 1, 2 or a multiple of 4, see
        :class:`DiffusionWorldModel`
    :param synthetic_ratio: Imagined transitions per real one in each update. It can be a function of the current
        progress remaining (from 1 to 0). While it is 0, the world model is not trained either
    :param real_data_ratio: Minimum share of the real transitions in each epoch: if there are fewer, they are repeated.
        They are the only source of what the world model does not predict, such as a rare fall
    :param min_advantage_correlation: Imagination pauses while the advantages along imagined and along real segments with the
        same actions correlate less than this, in the mean over the newest 20 rollouts: the policy learns from the real
        transitions alone then, as with PPO. With -1 it never pauses
    :param n_denoising_steps: Number of calls of the denoiser per segment. With few, samples are close to the mean of the
        next-state distribution: use more in stochastic environments
    :param sampler: ``"flow"`` (flow matching, a handful of steps), ``"heun"`` (the same with steps of second order),
        ``"ddim"`` or ``"ddpm"`` (the paper's, with 128 steps)
    :param world_model_gradient_steps: Updates of the world model per policy update (five times as many for the first)
    :param world_model_batch_size: Segments per update of the world model
    :param world_model_learning_rate: Learning rate of the world model. It can be a function of the current progress
        remaining (from 1 to 0)
    :param world_model_warmup: Real transitions before the world model is first fitted and used
    :param buffer_size: Size of the replay buffer of real transitions that the world model is trained on, in rows: one for
        each transition and one for the last state of each episode; the oldest are overwritten
    :param world_model_kwargs: Further arguments of :class:`DiffusionWorldModel` (``network``, ``network_kwargs``,
        ``open_loop_length``, ``ema_decay``, ``noise_density``, ``terminations``)
    :param termination_fn: The true rule of termination if it is known, in place of the learned one. It gets numpy
        arrays ``(observations, actions, next_observations)`` in raw units with one row per transition and returns
        one boolean per row
    :param real_steps_per_update: Approximate number of real transitions per policy update. After a rollout of 1.5 times as
        many or more, AGDPPO updates the policy several times, each time with another part of the real transitions and with
        segments that the newest policy imagines in a world model that is trained further. After rollouts of less than half as
        many, imagination takes place once per so many real transitions
    :param policy_data: What the policy learns from: ``"mixed"``, real and imagined transitions, or ``"imagined"`` ones only,
        as in the paper. While there are none, before imagination begins and while it pauses, AGDPPO does not update the
        policy. Other algorithms with :class:`GuidanceCallback` cannot skip an update: they learn from the real transitions
    :param action_sampler: How the actions of imagined segments are drawn: ``None`` for exact samples of the policy, or an
        instance of :class:`sb3_agd.imagination.ActionSampler`, such as :class:`sb3_agd.replication.PolicyScoreActions`
    :param start_states: Real states that imagination starts from: ``"recent"``, among the newest 20,000 transitions, or
        ``"all"`` in the replay buffer, as in the paper
    :raises ValueError: If a setting is invalid
    """

    guidance: str | Guide = field(default="sag", metadata=checked(lambda _, value: make_guide(value)))
    guidance_mode: str = field(default="select", metadata=checked(partial(check_choice, choices=GUIDANCE_MODES)))
    guidance_scale: float | Schedule = field(default=1.0, metadata=checked(check_schedule))
    n_candidates: int = field(default=4, metadata=checked(partial(check_integer, minimum=2)))
    horizon: int = field(default=8, metadata=checked(changeable=False))
    synthetic_ratio: float | Schedule = field(default=4.0, metadata=checked(check_schedule))
    real_data_ratio: float = field(default=0.2, metadata=checked(partial(check_number, minimum=0, below=1)))
    min_advantage_correlation: float = field(default=0.25, metadata=checked(partial(check_number, minimum=-1, below=1)))
    n_denoising_steps: int = field(default=2, metadata=checked(changeable=False))
    sampler: str = field(default="flow", metadata=checked(changeable=False))
    world_model_gradient_steps: int = field(default=50, metadata=checked(partial(check_integer, minimum=1)))
    world_model_batch_size: int = field(default=128, metadata=checked(partial(check_integer, minimum=1)))
    world_model_learning_rate: float | Schedule = field(default=3e-3, metadata=checked(partial(check_schedule, positive=True)))
    world_model_warmup: int = field(default=1000, metadata=checked(partial(check_integer, minimum=0)))
    buffer_size: int = field(default=1_000_000, metadata=checked(changeable=False))
    world_model_kwargs: dict[str, Any] | None = field(default=None, metadata=checked(check_dictionary, changeable=False))
    termination_fn: TerminationFn | None = field(default=None, metadata=checked(changeable=False))
    real_steps_per_update: int = field(default=512, metadata=checked(partial(check_integer, minimum=1)))
    policy_data: str = field(default="mixed", metadata=checked(partial(check_choice, choices=POLICY_DATA)))
    action_sampler: ActionSampler | None = field(default=None, metadata=checked(check_sampler, changeable=False))
    start_states: str = field(default="recent", metadata=checked(partial(check_choice, choices=START_STATES)))

    def __post_init__(self) -> None:
        for each in fields(self):
            check = each.metadata["check"]
            if check is not None:
                check(each.name, getattr(self, each.name))
        if self.policy_data == "imagined" and not callable(self.synthetic_ratio) and self.synthetic_ratio == 0:
            raise ValueError(
                '`policy_data="imagined"` needs a `synthetic_ratio` above 0: there would be nothing to learn from'
            )
        # A change of the user's dictionary shows later
        object.__setattr__(self, "world_model_kwargs", copied_dictionaries(self.world_model_kwargs))
        own = vars(self).keys() | {"self", "observation_dim", "action_dim", "learning_rate", "seed"}
        further = set(signature(DiffusionWorldModel.__init__).parameters) - own
        unknown = set(self.world_model_kwargs or {}) - further
        if unknown:
            raise ValueError(f"`world_model_kwargs` may hold {sorted(further)}, not {sorted(unknown)}")
        # The world model checks its own arguments: now rather than in the middle of training
        check_arguments(self.world_model_arguments())
        # A segment and the state after it must fit into the replay buffer
        check_integer("buffer_size", self.buffer_size, self.horizon + 2)

    @classmethod
    def of(cls, owner: Any) -> Settings:
        """
        :param owner: AGDPPO or a callback, with an attribute for each setting
        :return: Their present values
        :raises ValueError: If one is invalid
        """
        return cls(**{each.name: getattr(owner, each.name) for each in fields(cls)})

    def update_interval(self, n_real: int) -> int:
        """
        :param n_real: Number of real transitions of a rollout
        :return: Number of real transitions after which imagination takes place, see ``real_steps_per_update``
        """
        return n_real if 2 * n_real >= self.real_steps_per_update else self.real_steps_per_update

    def world_model_arguments(self) -> dict[str, Any]:
        """
        :return: Arguments of :class:`DiffusionWorldModel` that are settings
        """
        return {
            "horizon": self.horizon,
            "n_denoising_steps": self.n_denoising_steps,
            "sampler": self.sampler,
            "termination_fn": self.termination_fn,
            **(self.world_model_kwargs or {}),
        }

    @property
    def suits_randomness(self) -> bool:
        """Whether imagined segments are as random as the task, see :class:`DiffusionWorldModel`."""
        arguments = self.world_model_arguments()
        return self.n_denoising_steps >= 16 and arguments.get("open_loop_length") == 1

    def check_successor(self, successor: Settings) -> None:
        """
        :param successor: Settings to go on with
        :raises ValueError: If they differ in one that may not change during training
        """
        for each in fields(self):
            before, now = getattr(self, each.name), getattr(successor, each.name)
            # An empty dictionary is the same as `None`
            if not each.metadata["changeable"] and (before or None) != (now or None):
                raise ValueError(
                    f"`{each.name}` was {before} when the world model was built, and cannot be {now} now. To change it, save "
                    "the model and give the new setting to `load`, or, where weights or transitions do not fit, make a new one"
                )

    @property
    def guide(self) -> Guide | None:
        """The guide, ``None`` for no guidance."""
        return make_guide(self.guidance)

    def guidance_at(
        self, progress_remaining: float, guidance: str | Guide | None = None, scale: float | None = None
    ) -> Guidance:
        """
        :param progress_remaining: From 1 to 0
        :param guidance: Another objective; ``None`` for the one of the settings
        :param scale: Another strength; ``None`` for the one of the settings
        :return: Guidance at that progress
        :raises ValueError: If an argument is invalid
        """
        strength = scheduled_value("guidance_scale", self.guidance_scale if scale is None else scale, progress_remaining)
        guide = self.guide if guidance is None else make_guide(guidance)
        return Guidance(guide, self.guidance_mode, strength, self.n_candidates)

    def scheduled(self, name: str, progress_remaining: float) -> float:
        """
        :param name: Name of a setting that may be a schedule
        :param progress_remaining: From 1 to 0
        :return: Its value at that progress
        :raises ValueError: If the schedule gives an invalid number
        """
        return scheduled_value(name, getattr(self, name), progress_remaining)

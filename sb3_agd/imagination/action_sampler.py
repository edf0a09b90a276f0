"""What may draw the actions of imagined segments in place of the policy with fixed noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd.imagination.policy_adapter import FixedNoisePolicy, PolicyAdapter
from sb3_agd.world_model import DiffusionWorldModel


class ActionSampler(ABC):
    """
    Base of the samplers of actions that can be passed as ``action_sampler``. They are saved with the model.
    """

    def check(self, model: OnPolicyAlgorithm, world_model_arguments: dict[str, Any]) -> None:  # noqa: B027 (optional)
        """
        :param model: The algorithm
        :param world_model_arguments: Arguments that the world model is about to be built with
        :raises ValueError: If this sampler does not suit them
        """

    @abstractmethod
    def policy(
        self, agent: PolicyAdapter, n_segments: int, horizon: int, generator: th.Generator, world_model: DiffusionWorldModel
    ) -> FixedNoisePolicy:
        """
        :param agent: The agent
        :param n_segments: Number of segments, B
        :param horizon: Number of transitions of a segment, H
        :param generator: Source of all noise
        :param world_model: The world model
        :return: Policy for one imagination of B segments
        """

    def adapt(self, agent: PolicyAdapter, rows: RolloutBufferSamples) -> None:  # noqa: B027 (optional)
        """
        Called after each imagination that the agent learns from.

        :param agent: The agent
        :param rows: What it learns from
        """

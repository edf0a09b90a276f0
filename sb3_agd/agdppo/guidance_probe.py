"""Imagined actions carried out in the real environment: does what was imagined come true?"""

import math
import warnings
from dataclasses import fields

import numpy as np
import torch as th
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_agd.checkpoint.env_snapshot import Snapshot, env_layers, simulators
from sb3_agd.checkpoint.simulator import Simulator
from sb3_agd.experience.vec_normalize import without_passive_wrappers
from sb3_agd.imagination import Critic
from sb3_agd.imagination.imagination import Imagination
from sb3_agd.imagination.settings import NO_GUIDANCE, Guidance
from sb3_agd.world_model import Segments

# The gain of guidance is measured in every so many rollouts, from so many states, with so many segments from each
PROBE_INTERVAL = 10
PROBE_STARTS = 8
PROBE_SEGMENTS = 4


def segment_advantages(critic: Critic, segments: Segments[th.Tensor]) -> th.Tensor:
    """
    Discounted sum of the advantages along segments, that is, by how much the rewards and the value at the end exceed
    the value of the start.

    :param critic: The critic
    :param segments: In raw units
    :return: In standard deviations of the one-step advantage, shape (B,)
    """
    advantages = critic.advantages(segments)
    discounts = critic.gamma ** th.arange(advantages.shape[1], device=advantages.device)
    return (discounts * advantages).sum(1)


class GuidanceProbe:
    """
    During training, whether the advantage that guided segments claim is still there when their actions are carried out
    in the real simulator. Only for MuJoCo environments: others might be no simulations at all, but hardware.

    :param imagination: World model, agent and data
    """

    def __init__(self, imagination: Imagination):
        self.imagination = imagination
        self.starts: list[tuple[Simulator, Snapshot, np.ndarray]] = []
        self._has_failed = False

    def _simulator(self, index: int) -> Simulator | None:
        """
        :param index: Number of an environment
        :return: The environment, ``None`` if it cannot or must not be put back into earlier states
        """
        imagination = self.imagination
        # The agent must see it as it is, up to a normalisation that imagination knows
        venv = without_passive_wrappers(imagination.model.env)
        if isinstance(venv, VecNormalize):
            venv = without_passive_wrappers(venv.venv)
        if not isinstance(venv, DummyVecEnv):
            return None
        env = venv.envs[index]
        layers = env_layers(env)
        if not simulators(layers) or any(isinstance(layer, RecordVideo) for layer in layers):
            return None
        return Simulator(env, imagination.observation_codec, imagination.action_codec)

    def record(self) -> None:
        """Keep the state of an environment, in some of the steps of some of the rollouts."""
        model = self.imagination.model
        rollout = (model.num_timesteps - 1) // (model.n_steps * model.n_envs)
        # Not by the number of steps: a rollout may have been stopped early
        step = model.rollout_buffer.pos
        if step == 0:
            self.starts = []
        interval = math.ceil(model.n_steps / PROBE_STARTS)
        is_due = rollout % PROBE_INTERVAL == 0 and step % interval == 0
        if not is_due or self._has_failed or not self.imagination.world_model.is_trained:
            return
        index = step // interval % model.n_envs
        simulator = self._simulator(index)
        if simulator is None:
            return
        snapshot = simulator.snapshot()
        # What cannot be put back must not be moved
        if not snapshot.left_out:
            self.starts.append((simulator, snapshot, self.imagination.recorder.current_observations[index]))

    def measure(self, guidance: Guidance) -> dict[str, float]:
        """
        :param guidance: Guidance by the present critic
        :return: ``claimed_gain`` and ``true_gain``: by how much guidance raises the advantage of a segment, as imagined and
            as it is in the simulator, in standard deviations of the one-step advantage. Empty if there is nothing to measure
        """
        # Some environments build another simulator for each episode
        starts, self.starts = [start for start in self.starts if start[0].is_present()], []
        imagination = self.imagination
        if not starts or not (guidance.selects or guidance.moves):
            return {}
        states = np.stack([state for _, _, state in starts]).repeat(PROBE_SEGMENTS, axis=0)
        # A stream of its own: training is the same with and without measuring
        generator = imagination.generator(imagination.model.num_timesteps)
        gains = {"claimed_gain": 0.0, "true_gain": 0.0}
        for sign, used in ((1, guidance), (-1, NO_GUIDANCE)):
            tensor = th.as_tensor(states, device=imagination.model.device)
            segments, _ = imagination.imagine(tensor, used, generator)
            gains["claimed_gain"] += sign * self._mean_advantage(segments)
            try:
                replayed = self._replay(starts, segments)
            except Exception as error:  # Environments raise errors of many kinds, and training does not depend on this
                self._has_failed = True
                warnings.warn(
                    f"The true gain of guidance is not measured: this environment cannot be replayed ({error!r})", stacklevel=2
                )
                return {}
            gains["true_gain"] += sign * self._mean_advantage(replayed)
        return gains

    @th.no_grad()
    def _mean_advantage(self, segments: Segments[th.Tensor]) -> float:
        """
        :param segments: In raw units
        :return: Mean of :func:`segment_advantages`
        """
        return segment_advantages(self.imagination.critic, segments).mean().item()

    def _replay(
        self, starts: list[tuple[Simulator, Snapshot, np.ndarray]], segments: Segments[th.Tensor]
    ) -> Segments[th.Tensor]:
        """
        :param starts: Simulators and states, each for a number of segments
        :param segments: In raw units
        :return: What really happens
        """
        parts = []
        for number, (simulator, snapshot, _) in enumerate(starts):
            own = slice(number * PROBE_SEGMENTS, (number + 1) * PROBE_SEGMENTS)
            with simulator.undisturbed():
                parts.append(simulator.replay([snapshot] * PROBE_SEGMENTS, segments.map(lambda array, own=own: array[own])))
        return Segments(
            *(th.cat([getattr(part, name) for part in parts]) for name in (field.name for field in fields(Segments)))
        )

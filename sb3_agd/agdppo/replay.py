"""Imagined actions carried out in the real environment: does what was imagined come true?"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_agd.agdppo.imagination import Imagination
from sb3_agd.agdppo.normalization import beneath_passing_wrappers
from sb3_agd.agdppo.random_streams import untouched_global_streams
from sb3_agd.agdppo.snapshots import Snapshot, env_layers, same_objects, simulators
from sb3_agd.agdppo.spaces import SpaceCodec
from sb3_agd.world_model import Critic, Guide, Segments

# The gain of guidance is measured in every so many rollouts, from so many states, with so many segments from each
PROBE_INTERVAL = 10
PROBE_STARTS = 8
PROBE_SEGMENTS = 4


class Simulator:
    """
    A real environment that can be put back into earlier states, to carry out imagined actions there.

    :param env: The environment, with all wrappers that the agent acts through
    :param observation_codec: Codec of its observation space
    :param action_codec: Codec of its action space
    """

    def __init__(self, env: gym.Env, observation_codec: SpaceCodec, action_codec: SpaceCodec):
        self.env = env
        self.layers = env_layers(env)
        self.models = [model for model, _ in simulators(self.layers)]
        self.observation_codec = observation_codec
        self.action_codec = action_codec

    def is_present(self) -> bool:
        """Whether the environment still has the simulators that it had when this object was made."""
        return same_objects([model for model, _ in simulators(self.layers)], self.models)

    def snapshot(self) -> Snapshot:
        """State of the environment as it is now."""
        return Snapshot.of(self.layers)

    def restore(self, snapshot: Snapshot) -> None:
        """
        :param snapshot: State to put the environment into
        """
        snapshot.restore(self.layers)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """
        Put the environment back at the end, as if nothing had happened in between; log files get no rows, and global random
        streams are what they were. In between it works on copies: its own attributes may be shared with other code. Only
        parameters of a MuJoCo model that steps change, such as masses, stay changed.
        """
        before = self.snapshot()
        originals = [dict(vars(layer)) for layer in self.layers]
        try:
            self.restore(before)
            for layer in self.layers:
                if isinstance(layer, Monitor):
                    layer.results_writer = None
            with untouched_global_streams():
                yield
        finally:
            self.restore(before)
            for layer, attributes in zip(self.layers, originals, strict=True):
                vars(layer).clear()
                vars(layer).update(attributes)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """
        :param seed: Seed of the environment
        :return: First observation vector of a new episode, shape (observation_size,)
        """
        return self._encode(self.env.reset(seed=seed)[0])

    def _encode(self, observation: Any) -> np.ndarray:
        """
        :param observation: As the environment gives it
        :return: Observation vector, shape (observation_size,)
        """
        return self.observation_codec.encode(np.asarray(observation)[None])[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """
        :param action: Action vector, shape (action_size,)
        :return: Observation vector (observation_size,), reward, whether the state is terminal, whether the episode is over
        """
        decoded = self.action_codec.elements(th.from_numpy(action[None]))
        space = self.env.action_space
        given = decoded.item() if isinstance(space, spaces.Discrete) else decoded.reshape(space.shape)
        observation, reward, terminated, truncated, _ = self.env.step(given)
        return self._encode(observation), float(reward), terminated, terminated or truncated

    def replay(self, starts: Sequence[Snapshot], imagined: Segments[th.Tensor]) -> Segments[th.Tensor]:
        """
        Carry out the actions of segments.

        :param starts: Where each segment starts, B of them
        :param imagined: Segments in raw units, whose start states and actions count
        :return: What really happens, as segments in raw units; behind the end of an episode, its last state and masked
        """
        batch, horizon = imagined.rewards.shape
        states = imagined.observations[:, :1].repeat(1, horizon + 1, 1).cpu().numpy()
        rewards = np.zeros((batch, horizon), dtype=np.float32)
        terminations, mask = np.zeros((2, batch, horizon), dtype=bool)
        for number, (start, actions) in enumerate(zip(starts, imagined.actions.cpu().numpy(), strict=True)):
            self.restore(start)
            for step, action in enumerate(actions):
                state, rewards[number, step], terminations[number, step], over = self.step(action)
                states[number, step + 1 :] = state
                mask[number, step] = True
                if over:
                    break
        return Segments(states, imagined.actions.cpu().numpy(), rewards, terminations, mask).map(
            lambda array: th.as_tensor(array, device=imagined.rewards.device)
        )


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
        venv = beneath_passing_wrappers(imagination.model.env)
        if isinstance(venv, VecNormalize):
            venv = beneath_passing_wrappers(venv.venv)
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

    def measure(self, guide: Guide | None, guidance_scale: float, n_particles: int) -> dict[str, float]:
        """
        :param guide: The guide, ``None`` for none
        :param guidance_scale: Strength of the guidance where the critic explains all of the returns
        :param n_particles: See :meth:`Imagination.imagine`
        :return: ``claimed_gain`` and ``true_gain``: by how much guidance raises the advantage of a segment, as imagined and
            as it is in the simulator, in standard deviations of the one-step advantage. Empty if there is nothing to measure
        """
        # Some environments build another simulator for each episode
        starts, self.starts = [start for start in self.starts if start[0].is_present()], []
        imagination = self.imagination
        scale = imagination.trusted(guidance_scale)
        if not starts or guide is None or scale == 0:
            return {}
        states = np.stack([state for _, _, state in starts]).repeat(PROBE_SEGMENTS, axis=0)
        # A stream of its own: training is the same with and without measuring
        generator = imagination.generator(imagination.model.num_timesteps)
        gains = {"claimed_gain": 0.0, "true_gain": 0.0}
        for sign, used in ((1, guide), (-1, None)):
            tensor = th.as_tensor(states, device=imagination.model.device)
            segments, _ = imagination.imagine(tensor, used, scale, n_particles, generator)
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

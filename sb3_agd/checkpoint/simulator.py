"""A real environment that can be restored to earlier states, to carry out imagined actions."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_agd.checkpoint.env_snapshot import Snapshot, env_layers
from sb3_agd.experience.space_codecs import SpaceCodec
from sb3_agd.world_model import Segments


class Simulator:
    """
    A real environment that can be restored to earlier states, to carry out imagined actions there.

    :param env: The environment, with all wrappers that the agent acts through
    :param observation_codec: Codec of its observation space
    :param action_codec: Codec of its action space
    """

    def __init__(self, env: gym.Env, observation_codec: SpaceCodec, action_codec: SpaceCodec):
        self.env = env
        self.layers = env_layers(env)
        self.observation_codec = observation_codec
        self.action_codec = action_codec

    def snapshot(self) -> Snapshot:
        """Present state of the environment."""
        return Snapshot.of(self.layers)

    def restore(self, snapshot: Snapshot) -> None:
        """
        :param snapshot: State to restore
        :raises RestoreError: If the environment has another MuJoCo model now
        """
        snapshot.restore(self.layers)

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
        return self.observation_codec.encode(observation)[0]

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

    def replay(self, snapshots: Sequence[Snapshot], imagined: Segments[th.Tensor]) -> Segments[th.Tensor]:
        """
        Carry out the actions of segments.

        :param snapshots: Start of each segment, B of them
        :param imagined: Segments in raw units; only their start states and actions are used
        :return: The real segments in raw units, padded with the last state and masked after the end of an episode
        """
        batch, horizon = imagined.rewards.shape
        states = imagined.observations[:, :1].repeat(1, horizon + 1, 1).cpu().numpy()
        rewards = np.zeros((batch, horizon), dtype=np.float32)
        terminations, mask = np.zeros((2, batch, horizon), dtype=bool)
        for number, (snapshot, actions) in enumerate(zip(snapshots, imagined.actions.cpu().numpy(), strict=True)):
            self.restore(snapshot)
            for step, action in enumerate(actions):
                state, rewards[number, step], terminations[number, step], over = self.step(action)
                states[number, step + 1 :] = state
                mask[number, step] = True
                if over:
                    break
        return Segments(states, imagined.actions.cpu().numpy(), rewards, terminations, mask).map(
            lambda array: th.as_tensor(array, device=imagined.rewards.device)
        )

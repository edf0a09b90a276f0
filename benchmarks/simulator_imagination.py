"""AGDPPO with the MuJoCo simulator of its task in place of the world model: what imagination gives if it is true."""

import math
from collections import ChainMap
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd import AGDPPO
from sb3_agd.checkpoint.random_streams import untouched_global_streams
from sb3_agd.checkpoint.simulator import Simulator
from sb3_agd.experience.recorder import TransitionRecorder
from sb3_agd.experience.space_codecs import SpaceCodec
from sb3_agd.imagination import Guidance, Imagination, ImaginationState, Settings
from sb3_agd.imagination.policy_adapter import FixedNoisePolicy
from sb3_agd.imagination.value_bounds import UNKNOWN_RANGE, bound_values
from sb3_agd.world_model import DiffusionWorldModel, Segments
from sb3_agd.world_model.segment_denoiser import Policy

# What the next step of a MuJoCo task depends on. The solver starts from the accelerations, and Ant's reward from positions of
# bodies, which lag behind those of the joints
STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart", "xpos")
State = tuple[np.ndarray, ...]


def state_of(data: Any) -> State:
    """
    :param data: MuJoCo's data
    :return: A copy of the state
    """
    return tuple(getattr(data, name).copy() for name in STATE_FIELDS)


def restore(data: Any, state: State) -> None:
    """
    :param data: MuJoCo's data, whose state is replaced
    :param state: The state
    """
    for name, values in zip(STATE_FIELDS, state, strict=True):
        getattr(data, name)[:] = values


class SimulatorModel(DiffusionWorldModel):
    """
    A simulator with the interface of the world model. It only starts from observations whose states it was given: velocities
    are clipped in most observations of Walker2d-v5, so they do not determine the state.

    :param env: The task, a MuJoCo environment without wrappers
    :param observation_codec: Codec of its observation space
    :param action_codec: Codec of its action space
    :param horizon: Number of transitions of a segment
    """

    def __init__(self, env: gym.Env, observation_codec: SpaceCodec, action_codec: SpaceCodec, horizon: int):
        super().__init__(observation_codec.size, action_codec.size, horizon)
        self.simulator = Simulator(env, observation_codec, action_codec)
        self.data: Any = env.unwrapped.data  # type: ignore[attr-defined]
        # By the bytes of the observation vector: real states, and those of the newest segments
        self.real_states: dict[bytes, State] = {}
        self.imagined_states: dict[bytes, State] = {}

    def keep(self, observation: np.ndarray, data: Any) -> None:
        """
        Keep a real state to start segments from.

        :param observation: Observation vector
        :param data: MuJoCo's data of the environment that is there
        """
        self.real_states[observation.tobytes()] = state_of(data)

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """There is nothing to learn. See :meth:`DiffusionWorldModel.fit`."""
        self.n_updates += 1
        return {"denoising_loss": 0.0, "termination_loss": 0.0}

    @th.no_grad()
    def imagine(
        self, observations: th.Tensor | np.ndarray, policy: Policy, *args: Any, horizon: int | None = None, **kwargs: Any
    ) -> Segments[th.Tensor]:
        """
        Let a policy act. There is no noise of the world, and nothing that a guide could move.

        :param observations: Start states in raw units, shape (B, observation_dim), each kept before or part of the newest
            segments
        :param policy: The policy
        :param horizon: Number of transitions of a segment, ``None`` for the usual one
        :return: Segments in raw units, padded with their last state and masked after a termination
        :raises KeyError: If the state of an observation is not known
        """
        batch, horizon = len(observations), horizon or self.horizon
        starts = th.as_tensor(observations).cpu().numpy()
        known = ChainMap(self.imagined_states, self.real_states)
        present = [known[start.tobytes()] for start in starts]
        self.imagined_states = {}
        states = starts[:, None].repeat(horizon + 1, axis=1)
        actions = np.zeros((batch, horizon, self.action_dim), dtype=np.float32)
        rewards = np.zeros((batch, horizon), dtype=np.float32)
        terminations, mask = np.zeros((2, batch, horizon), dtype=bool)
        alive = np.ones(batch, dtype=bool)
        for step in range(horizon):
            mask[:, step] = alive
            before = th.as_tensor(states[:, step : step + 1], device=self.device)
            actions[:, step] = policy(before, slice(step, step + 1))[:, 0].cpu().numpy()
            for row in np.flatnonzero(alive):
                restore(self.data, present[row])
                state, rewards[row, step], terminations[row, step], _ = self.simulator.step(actions[row, step])
                states[row, step + 1 :] = state
                present[row] = self.imagined_states[state.tobytes()] = state_of(self.data)
            alive &= ~terminations[:, step]
        arrays = (states, actions, rewards, terminations, mask)
        return Segments(*arrays).map(lambda array: th.as_tensor(array, device=self.device))


class StateRecorder(TransitionRecorder):
    """Recorder that also keeps the states of the real environments for the simulator, given as ``simulator_model``."""

    simulator_model: SimulatorModel

    def start_rollout(self) -> None:
        super().start_rollout()
        self._keep()

    def record(self, local_variables: dict[str, Any]) -> None:
        super().record(local_variables)
        self._keep()

    def _keep(self) -> None:
        assert self.model.env is not None
        # None are known if other code has moved the environments
        observations: np.ndarray = self.current_observations
        for env, observation in zip(self.model.env.get_attr("unwrapped"), observations, strict=False):
            self.simulator_model.keep(observation, env.data)


class SimulatorImagination(Imagination):
    """
    Imagination in the simulator.

    :param model: The algorithm
    :param settings: The settings
    :param state: State of an earlier run to go on from, ``None`` to start afresh
    :param n_streams: Number of parallel environments that go on where they stopped at the last update, and are reset at the
        end of an episode, as PPO's own are. 0 for segments from recent real states, as with the world model
    :param bounded: Whether values are bounded
    """

    def __init__(self, model: AGDPPO, settings: Settings, state: ImaginationState | None, n_streams: int, bounded: bool):
        super().__init__(model, settings, state)
        assert model.env is not None
        task = model.env.get_attr("spec")[0].id
        codecs = (self.observation_codec, self.action_codec)
        self.world_model = SimulatorModel(gym.make(task).unwrapped, *codecs, settings.horizon)
        recorder = StateRecorder(model, self.replay_buffer, *codecs)
        recorder.simulator_model = self.world_model
        self.recorder = recorder
        self.bounded = bounded
        self.n_streams = n_streams
        if n_streams > 0:
            self.streams = make_vec_env(task, n_envs=n_streams, seed=int(self.state.rng.integers(2**31)))
            self._vectors = self.observation_codec.encode(np.asarray(self.streams.reset()))
            self._are_new = np.ones(n_streams, dtype=bool)

    def finish_rollout(self, buffer: RolloutBuffer) -> None:
        super().finish_rollout(buffer)
        if not self.bounded:
            self.state.value_range = UNKNOWN_RANGE

    def test(self) -> dict[str, th.Tensor]:
        """The simulator makes no errors: there is nothing to measure."""
        names = ("states", "imagined_terminations", "real_terminations", "advantage_correlation", "missed_randomness")
        return {name: th.full((1,), math.nan) for name in names}

    @th.no_grad()
    def imagine_rows(self, guidance: Guidance, n_rows: int) -> tuple[RolloutBufferSamples, float]:
        if self.n_streams == 0:
            return super().imagine_rows(guidance, n_rows)
        model, agent, length = self.model, self.agent, math.ceil(n_rows / self.n_streams)
        model.policy.set_training_mode(False)
        policy = FixedNoisePolicy(agent, self.n_streams, length, self.generator())
        spaces, discounts = (model.observation_space, model.action_space), (model.gae_lambda, model.gamma)
        buffer = RolloutBuffer(length, *spaces, model.device, *discounts, n_envs=self.n_streams)
        rewards = np.zeros((length, self.n_streams), dtype=np.float32)
        for step in range(length):
            vectors = th.as_tensor(self._vectors, device=model.device)
            actions = policy(vectors[:, None], slice(step, step + 1))[:, 0].cpu().numpy()
            observations: Any = agent.policy_observations(vectors)
            taken = policy.actions[:, step]
            values, log_probs, _ = model.policy.evaluate_actions(observations, taken)
            following, raw_rewards, dones, infos = self.streams.step(actions)
            rewards[step] = agent.rewards(th.from_numpy(raw_rewards)).numpy()
            given = rewards[step].copy()
            for row in np.flatnonzero(dones):
                if infos[row]["TimeLimit.truncated"]:
                    last = self.observation_codec.encode(infos[row]["terminal_observation"][None])
                    given[row] += model.gamma * agent.values(th.as_tensor(last, device=model.device)).item()
            buffer.add(observations.cpu().numpy(), taken.cpu().numpy(), given, self._are_new, values, log_probs)
            self._vectors, self._are_new = self.observation_codec.encode(np.asarray(following)), dones
        last_values = agent.values(th.as_tensor(self._vectors, device=model.device))
        bound_values(buffer, rewards, last_values, self._are_new, self.state.value_range, model.gamma)
        with untouched_global_streams():
            rows = next(buffer.get())
        return RolloutBufferSamples(*(part[:n_rows] for part in rows)), 0.0


class SimulatorAGDPPO(AGDPPO):
    """
    AGDPPO with the simulator of its MuJoCo task in place of the world model.

    :param n_streams: See :class:`SimulatorImagination`
    :param bounded: See there
    """

    def __init__(self, *args: Any, n_streams: int = 0, bounded: bool = True, **kwargs: Any):
        # The model is set up within
        self.n_streams = n_streams
        self.bounded = bounded
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.imagination = SimulatorImagination(self, self.settings, self._imagination_state, self.n_streams, self.bounded)

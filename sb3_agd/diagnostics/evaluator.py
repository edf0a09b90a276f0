"""Imagined segments, and what really happens after the same actions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch as th

from sb3_agd.agdppo import AGDPPO
from sb3_agd.checkpoint.env_snapshot import RestoreError, Snapshot
from sb3_agd.checkpoint.simulator import Simulator
from sb3_agd.diagnostics.progress import track
from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.imagination import Critic, Guidance
from sb3_agd.imagination.policy_adapter import FixedNoisePolicy
from sb3_agd.world_model import Segments

# Steps of real episodes from one start state to the next
STRIDE = 25
# Segments from each start state, with and without guidance
SAMPLES = 4
# Segments from each start state with the same actions, which show the spread of imagination
SPREAD_SAMPLES = 32
# After a segment, a Monte Carlo return follows the policy until the critic's value has this weight, or for this many steps
TAIL_WEIGHT = 0.1
MAX_TAIL = 250


def discounted_returns(rewards: np.ndarray, gamma: float, future: float = 0.0) -> np.ndarray:
    """
    :param rewards: Rewards of consecutive steps, shape (T,)
    :param gamma: Discount factor
    :param future: Return after the last step
    :return: Discounted sum of the rewards from each step on, shape (T,)
    """
    returns = np.empty(len(rewards))
    for step in reversed(range(len(rewards))):
        future = float(rewards[step]) + gamma * future
        returns[step] = future
    return returns


@dataclass(frozen=True)
class StartStates:
    """
    Start states from real episodes.

    :param states: Observation vectors, shape (B, observation_size)
    :param recorded: What happened next in the episodes, as segments in raw units
    :param snapshots: States of the environment, ``None`` if it cannot be restored to them
    """

    states: th.Tensor
    recorded: Segments[th.Tensor]
    snapshots: list[Snapshot] | None


@dataclass(frozen=True)
class Outcome:
    """
    Segments from all start states, ``SAMPLES`` from each.

    :param imagined: Imagined segments in raw units
    :param real: Real segments with the same actions, ``None`` if the environment cannot be restored
    :param claimed: Advantages of the imagined segments by the critic, see :func:`segment_advantages`, shape (B, SAMPLES)
    :param replayed: Advantages of the real segments by the critic
    """

    imagined: Segments[th.Tensor]
    real: Segments[th.Tensor] | None
    claimed: np.ndarray
    replayed: np.ndarray | None


def segment_advantages(critic: Critic, segments: Segments[th.Tensor]) -> th.Tensor:
    """
    Discounted sum of the advantages along segments: by how much the rewards and the value at the end exceed the value of
    the start.

    :param critic: The critic
    :param segments: In raw units
    :return: In standard deviations of the one-step advantage, shape (B,)
    """
    advantages = critic.advantages(segments)
    discounts = critic.gamma ** th.arange(advantages.shape[1], device=advantages.device)
    return (discounts * advantages).sum(1)


class Evaluator:
    """
    Compares what an agent's world model imagines with what happens in a real environment.

    :param model: The agent
    :param make_env: Makes an environment, with all wrappers of the agent's environment except for VecNormalize
    :param seed: Seed of the environment and of all noise
    :param progress_bar: Show the progress of what takes long
    :raises ValueError: If the environment has other spaces than the agent
    """

    def __init__(self, model: AGDPPO, make_env: Callable[[], gym.Env], seed: int, progress_bar: bool = False):
        self.model = model
        self.imagination = model.imagination
        model.policy.set_training_mode(False)
        env = make_env()
        for what, space, expected in (
            ("observation", env.observation_space, model.observation_space),
            ("action", env.action_space, model.action_space),
        ):
            if space != expected:
                raise ValueError(f"The environment's {what} space {space} is not the model's {expected}")
        self.env = env
        self.simulator = Simulator(env, self.imagination.observation_codec, self.imagination.action_codec)
        self.progress_bar = progress_bar
        self.set_seed(seed)

    def set_seed(self, seed: int) -> None:
        """
        :param seed: Seed of the environment and of all noise from now on
        """
        self.seed = seed
        self.generator = self.imagination.generator(seed)

    @property
    def horizon(self) -> int:
        """Number of transitions of a segment."""
        return self.imagination.world_model.horizon

    def sample_policy(self, n_steps: int) -> Callable[[np.ndarray, int], np.ndarray]:
        """
        :param n_steps: Number of steps at most
        :return: The policy with the noise of all steps already drawn: a function of an observation vector and the number of
            the step that returns an action vector
        """
        policy = FixedNoisePolicy(self.imagination.agent, 1, n_steps, self.generator)

        def act(state: np.ndarray, step: int) -> np.ndarray:
            vector = th.as_tensor(state, device=self.model.device).view(1, 1, -1)
            return policy(vector, slice(step, step + 1)).view(-1).cpu().numpy()

        return act

    def collect_start_states(self, n_starts: int) -> StartStates:
        """
        Play episodes with the policy, and keep the state after every ``STRIDE`` steps.

        :param n_starts: Number of start states
        :return: The start states
        """
        simulator, codec = self.simulator, self.imagination.observation_codec
        n_steps = n_starts * STRIDE + self.horizon
        buffer = ReplayBuffer(2 * n_steps, 1, codec.size, self.imagination.action_codec.size)
        act = self.sample_policy(n_steps)
        state = simulator.reset(self.seed)
        indices: list[int] = []
        snapshots = []
        for step in track(range(n_steps), "Steps of real episodes", self.progress_bar):
            if step % STRIDE == 0 and len(indices) < n_starts:
                indices.append(int(buffer.position[0]))
                snapshots.append(simulator.snapshot())
            action = act(state, step)
            next_state, reward, terminated, done = simulator.step(action)
            buffer.add(*(np.asarray([item]) for item in (state, action, reward, next_state, terminated, done)))
            state = simulator.reset() if done else next_state
        recorded = buffer.segments(np.zeros(n_starts, dtype=np.int64), np.array(indices), self.horizon)
        recorded = recorded.to(self.model.device)
        can_be_restored = self._repeats(snapshots, recorded)
        return StartStates(recorded.observations[:, 0], recorded, snapshots if can_be_restored else None)

    def _repeats(self, snapshots: list[Snapshot], recorded: Segments[th.Tensor]) -> bool:
        """
        :param snapshots: Start of each segment
        :param recorded: Segments of real episodes
        :return: Whether the same actions lead to the same states when the environment is restored
        """
        try:
            return th.equal(self.simulator.replay(snapshots, recorded).observations, recorded.observations)
        except RestoreError:
            return False

    def evaluate(self, start_states: StartStates, guidance: Guidance) -> Outcome:
        """
        Imagine segments and carry out their actions in the real environment.

        :param start_states: Start states
        :param guidance: The guidance, its scale taken as it is
        :return: Imagined and real segments
        """
        starts = start_states.states.repeat_interleave(SAMPLES, dim=0)
        imagined, _ = self.imagination.imagine(starts, guidance, self.generator)
        claimed = self._advantages(imagined)
        if start_states.snapshots is None:
            return Outcome(imagined, None, claimed, None)
        real = self.simulator.replay(repeated(start_states.snapshots), imagined)
        return Outcome(imagined, real, claimed, self._advantages(real))

    @th.no_grad()
    def _advantages(self, segments: Segments[th.Tensor]) -> np.ndarray:
        """
        :param segments: In raw units
        :return: By the critic, shape (B, SAMPLES)
        """
        return segment_advantages(self.imagination.critic, segments).view(-1, SAMPLES).cpu().numpy()

    def monte_carlo_returns(self, start_states: StartStates, outcome: Outcome, phase: str) -> np.ndarray | None:
        """
        Follow the policy after the segments.

        :param start_states: Start states
        :param outcome: Segments from there
        :param phase: What to call this in the display of the progress
        :return: Discounted returns from the start states on, in standard deviations of the one-step advantage, shape
            (B, SAMPLES); ``None`` if the environment cannot be restored
        """
        if start_states.snapshots is None:
            return None
        trials = list(zip(repeated(start_states.snapshots), outcome.imagined.actions.cpu().numpy(), strict=True))
        returns = [self._monte_carlo_return(*trial) for trial in track(trials, phase, self.progress_bar)]
        return np.array(returns).reshape(-1, SAMPLES) / self.imagination.critic.advantage_std

    @th.no_grad()
    def _monte_carlo_return(self, start: Snapshot, actions: np.ndarray) -> float:
        """
        :param start: State of the environment
        :param actions: Actions to begin with, shape (H, action_size)
        :return: Discounted return of these actions and of the policy's after them, in the critic's units
        """
        critic = self.imagination.critic
        tail = min(math.ceil(math.log(TAIL_WEIGHT) / math.log(critic.gamma)), MAX_TAIL) if 0 < critic.gamma < 1 else MAX_TAIL
        act = self.sample_policy(tail)
        self.simulator.restore(start)
        rewards = []
        state = np.empty(0)
        for step in range(len(actions) + tail):
            action = actions[step] if step < len(actions) else act(state, step - len(actions))
            state, reward, terminated, done = self.simulator.step(action)
            rewards.append(reward)
            if done:
                break
        future = 0.0 if terminated else critic.values(th.as_tensor(state, device=self.model.device)[None]).item()
        return float(discounted_returns(critic.rewards(th.tensor(rewards)).cpu().numpy(), critic.gamma, future)[0])

    def imagine_spread(self, start_states: StartStates) -> Segments[th.Tensor]:
        """
        Imagine many times what follows the recorded actions.

        :param start_states: Start states
        :return: Segments in raw units, ``SPREAD_SAMPLES`` from each start state
        """
        starts = start_states.states.repeat_interleave(SPREAD_SAMPLES, dim=0)
        actions = start_states.recorded.actions.repeat_interleave(SPREAD_SAMPLES, dim=0)
        return self.imagination.world_model.predict(starts, actions, self.generator)


def repeated(snapshots: list[Snapshot]) -> list[Snapshot]:
    """
    :param snapshots: Start of each group of segments
    :return: Start of each segment
    """
    return [snapshot for snapshot in snapshots for _ in range(SAMPLES)]

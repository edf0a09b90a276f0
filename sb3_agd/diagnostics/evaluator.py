"""What is imagined from states of real episodes, and what really happens there."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch as th
from tqdm import tqdm

from sb3_agd.agdppo import AGDPPO
from sb3_agd.agdppo.guidance_probe import segment_advantages
from sb3_agd.checkpoint.env_snapshot import Snapshot
from sb3_agd.checkpoint.simulator import Simulator
from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.imagination import Guidance
from sb3_agd.imagination.policy_adapter import FixedNoisePolicy
from sb3_agd.imagination.value_bounds import discounted_returns
from sb3_agd.world_model import Segments

# Steps of real episodes from one start state to the next
STRIDE = 25
# Segments from each start state, with and without guidance
SAMPLES = 4
# Segments from each start state with the same actions, to see the spread of what is imagined
SPREAD_SAMPLES = 32
# A Monte Carlo return goes on with the policy until the critic's value counts this much, and no further than that
TAIL_WEIGHT = 0.05
MAX_TAIL = 500


@dataclass(frozen=True)
class StartStates:
    """
    Start states of real episodes.

    :param states: Observation vectors, shape (B, observation_size)
    :param recorded: What really happened next, as segments in raw units
    :param snapshots: States of the environment, ``None`` if it cannot be put back into them
    """

    states: th.Tensor
    recorded: Segments[th.Tensor]
    snapshots: list[Snapshot] | None


@dataclass(frozen=True)
class Outcome:
    """
    Segments from all start states, a number of them from each one.

    :param imagined: As imagined
    :param real: What really happens after the same actions, ``None`` if that cannot be told
    :param claimed: Advantage of each imagined segment by the critic, in standard deviations of the one-step advantage,
        shape (B, samples)
    :param replayed: The same of the real segments
    :param returns: Discounted return of the real segments followed by the policy, in the same unit
    """

    imagined: Segments[th.Tensor]
    real: Segments[th.Tensor] | None
    claimed: np.ndarray
    replayed: np.ndarray | None
    returns: np.ndarray | None


class Evaluator:
    """
    A trained agent, its world model, and a real environment to try them in.

    :param model: The agent
    :param make_env: Makes an environment, with all wrappers that the agent acts through except for VecNormalize
    :param seed: Seed of all that is random
    :raises ValueError: If the environment has other spaces than the agent, or the world model was never trained
    """

    def __init__(self, model: AGDPPO, make_env: Callable[[], gym.Env], seed: int):
        self.model = model
        self.imagination = model.imagination
        self.imagination.check_trained()
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
        self.generator = self.imagination.generator(seed)
        self.seed = seed

    @property
    def horizon(self) -> int:
        """Number of transitions of a segment."""
        return self.imagination.world_model.horizon

    def play(self, n_steps: int) -> Callable[[np.ndarray, int], np.ndarray]:
        """
        :param n_steps: Number of steps at most
        :return: The policy with its noise drawn now: from an observation vector and the number of the step, an action
            vector
        """
        policy = FixedNoisePolicy(self.imagination.agent, 1, n_steps, self.generator)

        def act(state: np.ndarray, step: int) -> np.ndarray:
            vector = th.as_tensor(state, device=self.model.device).view(1, 1, -1)
            return policy(vector, slice(step, step + 1)).view(-1).cpu().numpy()

        return act

    def collect_start_states(self, n_starts: int) -> StartStates:
        """
        Play episodes.

        :param n_starts: Number of start states
        :return: States on the way, evenly spaced in time
        """
        simulator, codec = self.simulator, self.imagination.observation_codec
        n_steps = n_starts * STRIDE + self.horizon
        store = ReplayBuffer(2 * n_steps, 1, codec.size, self.imagination.action_codec.size)
        act = self.play(n_steps)
        state = simulator.reset(self.seed)
        rows: list[int] = []
        snapshots = []
        for step in range(n_steps):
            if step % STRIDE == 0 and len(rows) < n_starts:
                rows.append(int(store.position[0]))
                snapshots.append(simulator.snapshot())
            action = act(state, step)
            following, reward, terminated, over = simulator.step(action)
            store.add(*(np.asarray([item]) for item in (state, action, reward, following, terminated, over)))
            state = simulator.reset() if over else following
        recorded = store.segments(np.zeros(n_starts, dtype=np.int64), np.array(rows), self.horizon)
        recorded = recorded.map(lambda array: array.to(self.model.device))
        same = th.equal(simulator.replay(snapshots, recorded).observations, recorded.observations)
        return StartStates(recorded.observations[:, 0], recorded, snapshots if same else None)

    def evaluate(self, start_states: StartStates, guidance: Guidance) -> Outcome:
        """
        Imagine segments and see what comes of their actions.

        :param start_states: Start states
        :param guidance: The guidance, its scale taken as it is
        :return: What was imagined and what really happens
        """
        starts = start_states.states.repeat_interleave(SAMPLES, dim=0)
        imagined, _ = self.imagination.imagine(starts, guidance, self.generator)
        claimed = self._advantages(imagined)
        if start_states.snapshots is None:
            return Outcome(imagined, None, claimed, None, None)
        snapshots = [snapshot for snapshot in start_states.snapshots for _ in range(SAMPLES)]
        real = self.simulator.replay(snapshots, imagined)
        trials = list(zip(snapshots, imagined.actions.cpu().numpy(), strict=True))
        # The longest part. Shown on terminals only
        bar = tqdm(trials, desc=f"Segments carried out, {'unguided' if guidance.guide is None else 'guided'}", disable=None)
        returns = [self._monte_carlo(snapshot, actions) for snapshot, actions in bar]
        return Outcome(
            imagined,
            real,
            claimed,
            self._advantages(real),
            np.array(returns).reshape(-1, SAMPLES) / self.imagination.critic.advantage_std,
        )

    @th.no_grad()
    def _advantages(self, segments: Segments[th.Tensor]) -> np.ndarray:
        """
        :param segments: In raw units
        :return: By the critic, shape (B, SAMPLES)
        """
        return segment_advantages(self.imagination.critic, segments).view(-1, SAMPLES).cpu().numpy()

    @th.no_grad()
    def _monte_carlo(self, start: Snapshot, actions: np.ndarray) -> float:
        """
        :param start: State of the environment
        :param actions: Actions to begin with, shape (H, action_size)
        :return: Discounted return of these actions and of the policy from there on, in the critic's units
        """
        critic = self.imagination.critic
        tail = min(math.ceil(math.log(TAIL_WEIGHT) / math.log(critic.gamma)), MAX_TAIL) if 0 < critic.gamma < 1 else MAX_TAIL
        act = self.play(tail)
        self.simulator.restore(start)
        rewards = []
        state = np.empty(0)
        for step in range(len(actions) + tail):
            action = actions[step] if step < len(actions) else act(state, step - len(actions))
            state, reward, terminated, over = self.simulator.step(action)
            rewards.append(reward)
            if over:
                break
        future = 0.0 if terminated else critic.values(th.as_tensor(state, device=self.model.device)[None]).item()
        return float(discounted_returns(critic.rewards(th.tensor(rewards)).cpu().numpy(), critic.gamma, future)[0])

    def spread(self, start_states: StartStates) -> Segments[th.Tensor]:
        """
        Imagine what follows the recorded actions, many times.

        :param start_states: Start states
        :return: Segments in raw units, ``SPREAD_SAMPLES`` from each start state
        """
        starts = start_states.states.repeat_interleave(SPREAD_SAMPLES, dim=0)
        actions = start_states.recorded.actions.repeat_interleave(SPREAD_SAMPLES, dim=0)
        return self.imagination.world_model.predict(starts, actions, self.generator)

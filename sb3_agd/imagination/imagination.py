"""Everything between an SB3 on-policy algorithm and the world model: learning from real rollouts, imagining new ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd.checkpoint.random_streams import seed_of_global_streams
from sb3_agd.experience.recorder import TransitionRecorder
from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.segment_source import ReplaySegmentSource
from sb3_agd.experience.space_codecs import make_codec, map_parts
from sb3_agd.experience.user_inputs import encoded_observations
from sb3_agd.experience.vec_normalize import Normalization, normalizing_wrapper
from sb3_agd.imagination.critic_trust import MIN_ROWS, RealRows
from sb3_agd.imagination.guides import Critic, Guide, select_candidates
from sb3_agd.imagination.held_out_errors import held_out_errors
from sb3_agd.imagination.policy_adapter import FixedNoisePolicy, PolicyAdapter, check_distribution
from sb3_agd.imagination.rollout_rows import rollout_rows
from sb3_agd.imagination.settings import NO_GUIDANCE, Guidance, Settings
from sb3_agd.imagination.start_states import real_states, states_along
from sb3_agd.imagination.value_bounds import UNKNOWN_RANGE, attainable_range
from sb3_agd.world_model import DiffusionWorldModel, Segments
from sb3_agd.world_model.validation import check_integer

# Half of the world model's training segments come from this many newest rollouts
RECENT_ROLLOUTS = 20
# Weight of the newest rollout in the running deviation of the advantage
ADVANTAGE_STD_RATE = 0.1


@dataclass
class ImaginationState:
    """
    What must survive saving besides the weights.

    :param rng: Private source of all randomness of the world model and of imagination
    :param advantage_std: Running standard deviation of the one-step advantage on real data, in the critic's units
    :param critic_explained_variance: On the newest real rows, at least 0: a factor of the guidance scale
    :param value_range: Lowest and highest attainable value, in the critic's units: it bounds the values and value targets of
        real and imagined rows, and those that guides see
    :param normalization: Normalisation that the agent was trained with: a model loaded without environment needs it
    :param correlations: Correlations of the advantages along imagined and real segments in the newest rollouts
    :param real_rows: Real rows that the critic is judged on
    :param advantages: Along imagined and real segments in the newest tests after short rollouts, shape (2, N)
    """

    rng: np.random.Generator
    advantage_std: float | None = None
    critic_explained_variance: float = 0.0
    value_range: tuple[float, float] = UNKNOWN_RANGE
    normalization: Normalization | None = None
    correlations: tuple[float, ...] = ()
    real_rows: RealRows | None = None
    advantages: th.Tensor | None = None


class Imagination:
    """
    World model, replay buffer of real transitions and agent, and what they do together.

    :param model: The algorithm
    :param settings: The settings
    :param state: State of an earlier run to go on from, ``None`` to start afresh with the seed of the algorithm
    :raises ValueError: If the spaces, the distribution of the actions or the device are not supported, or the replay buffer
        is too small
    """

    def __init__(self, model: OnPolicyAlgorithm, settings: Settings, state: ImaginationState | None = None):
        n_needed = settings.horizon + 2
        if settings.buffer_size // model.n_envs < n_needed:
            raise ValueError(
                f"`buffer_size` {settings.buffer_size} is too small: each of the {model.n_envs} environments needs room for "
                f"`horizon` + 2 = {n_needed} transitions"
            )
        self.observation_codec = make_codec(model.observation_space, "observation")
        self.action_codec = make_codec(model.action_space, "action")
        check_distribution(model.policy)
        if settings.action_sampler is not None:
            settings.action_sampler.check(model, settings.world_model_arguments())
        if model.device.type == "mps":
            raise ValueError(
                'The world model needs double precision, which MPS does not have: give `device="cpu"`, which suits small '
                "networks anyway"
            )
        self.model = model
        self.settings = settings
        seed = seed_of_global_streams() if model.seed is None else model.seed
        self.state = state or ImaginationState(np.random.default_rng(seed))
        sizes = self.observation_codec.size, self.action_codec.size
        arguments = settings.world_model_arguments() | {"termination_fn": self._in_raw_units(settings.termination_fn)}
        self.replay_buffer = ReplayBuffer(settings.buffer_size, model.n_envs, *sizes)
        self.world_model = DiffusionWorldModel(*sizes, seed=seed, **arguments).to(model.device)
        self.recorder = TransitionRecorder(model, self.replay_buffer, self.observation_codec, self.action_codec)
        # Up to where the replay buffer is part of the running statistics
        self._observed = self.replay_buffer.position.copy()

    def attach(self, model: OnPolicyAlgorithm) -> None:
        """
        Go on with another model, one loaded from a file for example.

        :param model: The algorithm, which begins with new episodes
        :raises ValueError: If its environments are of another kind
        """
        for what in ("observation_space", "action_space", "n_envs"):
            before, now = getattr(self.model, what), getattr(model, what)
            if before != now:
                raise ValueError(
                    f"This GuidanceCallback was used with `{what}` {before}, which is {now} now: make a new GuidanceCallback"
                )
        self.model = self.recorder.model = model
        self.world_model.to(model.device)
        # Its moments follow
        self.world_model.optimizer.load_state_dict(self.world_model.optimizer.state_dict())

    def transitions_loaded(self) -> None:
        """
        To be called after the transitions in the replay buffer were replaced by those of a file. A world model without
        statistics takes its statistics from all of them.
        """
        if self.world_model.observation_normalizer.count > 0:
            self._observed = self.replay_buffer.position.copy()
        else:
            self._observed = np.zeros_like(self.replay_buffer.position)

    def _in_raw_units(self, termination_fn: Callable | None) -> Callable | None:
        """
        :param termination_fn: The user's rule, on raw observations and actions
        :return: The same rule on vectors of the world model
        """
        if termination_fn is None:
            return None

        def on_vectors(observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
            codecs = (self.observation_codec, self.action_codec, self.observation_codec)
            rows = (observations, actions, next_observations)
            return termination_fn(*(codec.elements(th.from_numpy(part)) for codec, part in zip(codecs, rows, strict=True)))

        return on_vectors

    def generator(self, seed: int | None = None) -> th.Generator:
        """
        :param seed: ``None`` to draw one from the private generator
        :return: A new generator on the algorithm's device
        :raises ValueError: If it is not an integer of at least 0
        """
        if seed is None:
            seed = int(self.state.rng.integers(2**62))
        check_integer("seed", seed, 0)
        return th.Generator(self.model.device).manual_seed(int(seed))

    @property
    def agent(self) -> PolicyAdapter:
        """The agent in its present environment, or, without one, as it was trained."""
        normalization = self.state.normalization
        if self.model.env is not None:
            env, trained_with = normalizing_wrapper(self.model.env), normalization
            normalization = None if env is None else Normalization.of(env)
            if normalization is not None and normalization.returns is None and trained_with is not None:
                # An environment to evaluate in shows raw rewards, which the critic has never seen
                normalization = replace(normalization, returns=trained_with.returns)
        return PolicyAdapter(self.model, self.observation_codec, self.action_codec, normalization)

    @property
    def _gamma(self) -> float:
        """Discount factor of the real rows: that of the rollout buffer, which SB3 does not change."""
        return self.model.rollout_buffer.gamma

    @property
    def _n_recent(self) -> int:
        """Number of transitions of the newest rollouts. Short rollouts are counted together."""
        return RECENT_ROLLOUTS * max(self.model.n_steps * self.model.n_envs, MIN_ROWS)

    # Learning from real rollouts

    def start_rollout(self) -> None:
        """
        Take over the normalisation and the states that the environments are in.

        :raises ValueError: If an observation is not finite
        """
        env = normalizing_wrapper(self.model.env)
        self.state.normalization = None if env is None else Normalization.of(env)
        self.recorder.start_rollout()

    def finish_rollout(self, buffer: RolloutBuffer) -> None:
        """
        Take the newest rollout into all running statistics.

        :param buffer: The algorithm's rollout buffer, not yet flattened
        """
        starts = self.replay_buffer.transitions_since(self._observed)
        rollout = self.replay_buffer.segments(*starts, horizon=1)
        is_episode_start = th.from_numpy(self.replay_buffer.episode_starts(*starts))
        self._observed = self.replay_buffer.position.copy()
        self.world_model.observe(
            th.cat([rollout.observations[is_episode_start, 0], rollout.observations[:, 1]]),
            rollout.actions[:, 0],
            rollout.rewards[:, 0],
            rollout.terminations[:, 0],
        )
        # Also of transitions that are not stored
        low, high = self.recorder.reward_range
        self.world_model.reward_normalizer.low.clamp_(max=low)
        self.world_model.reward_normalizer.high.clamp_(min=high)
        state = self.state
        state.real_rows = RealRows.of(buffer, state.real_rows)
        state.critic_explained_variance = state.real_rows.explained_variance
        advantage_std = state.real_rows.advantage_std(buffer.gamma)
        if state.advantage_std is None:
            state.advantage_std = advantage_std
        state.advantage_std += ADVANTAGE_STD_RATE * (advantage_std - state.advantage_std)
        state.value_range = self._value_range()

    def _value_range(self) -> tuple[float, float]:
        """
        :return: Lowest and highest attainable value in the critic's units, by the lowest and the highest real reward so far
        """
        # SB3's own rollout buffers have no such switch
        if not getattr(self.model.rollout_buffer, "bound_values", True):
            return UNKNOWN_RANGE
        normalizer = self.world_model.reward_normalizer
        low, high = self.agent.rewards(th.cat([normalizer.low, normalizer.high])).tolist()
        return attainable_range(low, high, self._gamma)

    def test(self) -> dict[str, th.Tensor]:
        """Test the world model on the newest transitions. See :func:`held_out_errors`."""
        return held_out_errors(self)

    def fit(
        self,
        gradient_steps: int,
        batch_size: int,
        learning_rate: float,
        on_update: Callable[[], Any] | None = None,
    ) -> dict[str, float]:
        """
        Train the world model on segments of the replay buffer.

        :param gradient_steps: Number of updates
        :param batch_size: Number of segments of each update
        :param learning_rate: Learning rate
        :param on_update: Called after each update
        :return: Mean losses, see :meth:`DiffusionWorldModel.fit`
        :raises FloatingPointError: See there
        """
        source = ReplaySegmentSource(self.replay_buffer, self.world_model.horizon, self._n_recent, self.state.rng)
        return self.world_model.fit(source, gradient_steps, batch_size, learning_rate, self.generator(), on_update)

    # Imagining

    def check_trained(self) -> None:
        """
        :raises ValueError: If the world model was not trained yet
        """
        if not self.world_model.is_trained:
            raise ValueError(
                "The world model was not trained yet, so there is nothing to imagine: call `learn` with a `synthetic_ratio` "
                "above 0, for at least `world_model_warmup` steps"
            )

    def start_states(self, observations: np.ndarray) -> th.Tensor:
        """
        :param observations: As the environment gives them, or flattened, shape (B, observation_dim)
        :return: Start states for :meth:`imagine`, shape (B, observation_size)
        :raises ValueError: If their shape or a value is invalid
        """
        vectors = encoded_observations(self.observation_codec, self.model.observation_space, observations)
        # A copy: the user's array may be read-only
        return th.tensor(vectors, device=self.model.device)

    def imagine(
        self, starts: th.Tensor, guidance: Guidance, generator: th.Generator, horizon: int | None = None
    ) -> tuple[Segments[th.Tensor], th.Tensor]:
        """
        :param starts: Start states as observation vectors, shape (B, observation_size)
        :param guidance: The guidance, its scale taken as it is
        :param generator: Source of all noise
        :param horizon: Number of transitions, ``None`` for that of the settings
        :return: Segments in raw units, and their actions as the rollout buffer stores them, shape (B, H, action_dim)
        :raises ValueError: If the parameters of the policy are not finite, or the guide's objective has another shape than
            (B,)
        """
        agent, world_model, critic = self.agent, self.world_model, self.critic
        world_model.check_horizon(horizon)
        self.model.policy.set_training_mode(False)
        # With its parameters checked, which is left out within the sampling loop
        with th.no_grad():
            self.model.policy.get_distribution(agent.policy_observations(starts[:1]))
        n_candidates = guidance.n_candidates if guidance.selects else 1
        candidates = starts.repeat_interleave(n_candidates, dim=0)
        arguments = agent, len(candidates), horizon or world_model.horizon, generator
        sampler = self.settings.action_sampler
        policy = FixedNoisePolicy(*arguments) if sampler is None else sampler.policy(*arguments, world_model)
        objective, weight = None, Guide.weight
        if guidance.guide is not None and guidance.moves:
            objective, weight = partial(guidance.guide.checked_objective, critic=critic), guidance.guide.weight
        segments = world_model.imagine(candidates, policy, objective, guidance.scale, generator, n_candidates, horizon, weight)
        actions = policy.actions
        if guidance.guide is not None and guidance.selects:
            with th.no_grad():
                objectives = guidance.guide.checked_objective(segments, critic)
            selected = select_candidates(objectives, n_candidates, guidance.scale, generator)
            segments, actions = segments.map(lambda array: array[selected]), actions[selected]
        return segments, actions

    def effective_guidance(self, guidance: Guidance) -> Guidance:
        """
        :param guidance: Guidance if the critic explained all of the returns
        :return: The same, its scale multiplied by the critic's explained variance, if the guide asks for that
        """
        if guidance.guide is None or not guidance.guide.critic_trust:
            return guidance
        return replace(guidance, scale=guidance.scale * self.state.critic_explained_variance)

    @property
    def critic(self) -> Critic:
        """The agent's critic, with values within the attainable range."""
        agent, value_range = self.agent, self.state.value_range

        def bounded_values(vectors: th.Tensor) -> th.Tensor:
            return th.clamp(agent.values(vectors), *value_range)

        # Before the first rollout, or if all advantages are equal, there is no unit to measure advantages in
        return Critic(bounded_values, agent.rewards, self._gamma, self.state.advantage_std or 1.0)

    def imagine_rows(self, guidance: Guidance, n_rows: int) -> tuple[RolloutBufferSamples, float]:
        """
        Imagine segments from real states for the policy to learn from.

        If the guide selects among candidates, the selected segments only provide start states. The rows come from segments
        imagined from there without guidance: the actions and returns of selected segments are better than the policy's own,
        and learning from them would raise the policy's noise and make the critic overestimate it.

        :param guidance: The guidance, its scale taken as it is
        :param n_rows: Number of imagined transitions. There are somewhat fewer if segments end early
        :return: Rows for :meth:`AugmentedRolloutBuffer.augment`, and the share of the imagined transitions that are left out
            because they come after a termination
        """
        n_segments = math.ceil(n_rows / self.world_model.horizon)
        states = real_states(self.replay_buffer, n_segments, self.state.rng, self.settings.start_states)
        starts = th.as_tensor(states, device=self.model.device)
        generator = self.generator()
        if guidance.selects:
            selected, _ = self.imagine(starts, guidance, generator)
            starts, guidance = states_along(selected, generator), NO_GUIDANCE
        segments, actions = self.imagine(starts, guidance, generator)
        rows = rollout_rows(self.agent, segments, actions, self.state.value_range)
        if self.settings.action_sampler is not None:
            self.settings.action_sampler.adapt(self.agent, rows)
        rows = RolloutBufferSamples(*(map_parts(lambda column: column[:n_rows], column) for column in rows))
        return rows, 1 - segments.mask.float().mean().item()

"""A vectorised environment whose steps are imagined."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_agd.agdppo.imagination_mixin import ImaginationMixin
from sb3_agd.diagnostics.poses import Scene
from sb3_agd.experience.space_codecs import DictCodec, SpaceCodec
from sb3_agd.experience.user_inputs import batched, checked_vectors
from sb3_agd.experience.vec_envs import innermost
from sb3_agd.imagination.start_states import RECENT_ROWS
from sb3_agd.world_model.validation import check_integer

# A number leaves the observed range if it differs by more than this share of its magnitude, some roundings in single precision
ROUNDING = 1e-6


def task_of(env: Any) -> EnvSpec | None:
    """
    :param env: Vectorised environment, ``None`` for none
    :return: The task of its environments, ``None`` if it is unknown. Environments in other processes are not asked: one whose
        answer cannot be pickled would die
    """
    inner = innermost(env)
    return inner.envs[0].spec if isinstance(inner, DummyVecEnv) else None


def environment_observations(codec: SpaceCodec, space: Any, vectors: th.Tensor) -> Any:
    """
    :param codec: Codec of the space
    :param space: An observation space
    :param vectors: Not necessarily exact encodings, shape (N, size)
    :return: The nearest elements of the space, as vectorised environments give them: an array, or a dictionary of arrays
    """
    if isinstance(codec, DictCodec):
        parts = codec.split(vectors).items()
        return {key: environment_observations(codec.codecs[key], space[key], part) for key, part in parts}
    elements = codec.elements(vectors).reshape(-1, *space.shape)
    return np.clip(elements, space.low, space.high) if isinstance(space, spaces.Box) else elements


def row_of(observations: Any, index: int) -> Any:
    """
    :param observations: Observations of all environments
    :param index: Number of an environment
    :return: Its observation
    """
    return {key: part[index] for key, part in observations.items()} if isinstance(observations, dict) else observations[index]


class ImaginedVecEnv(VecEnv):
    """
    Vectorised environment whose steps are imagined by a trained world model: any algorithm of SB3 can act, be evaluated and
    be trained in it. Observations and rewards are those of the real environment, before ``VecNormalize``. It steps no real
    environment, and it changes neither the model nor its random generators. If the model is trained further, later steps are
    imagined by the better world model.

    Each step is imagined from the observation as it is returned, and terminations are drawn from the model.
    ``infos[i]["off_range"]`` is the distance of the observation from the range of the real ones, in widths of this range, for
    the number that is furthest off: 0 within the range, infinite where a number that never changed has changed. The world
    model keeps its predictions within a tenth of the width; beyond, nothing was learned.

    :param model: A trained :class:`AGDPPO`, or a :class:`GuidanceCallback` after training
    :param n_envs: Number of environments. They are imagined together, so that many hardly take longer than one
    :param start_states: Where episodes begin: ``"first"`` for first states of real episodes, ``"recent"`` for any states among
        the newest 20,000 (both of the replay buffer as it is now), or observations as the environment gives them, shape
        (B, observation_dim), or a dictionary of such arrays. Each episode draws one
    :param max_episode_steps: Time limit of episodes, ``None`` for that of the task
    :param seed: Seed of start states, next states, rewards and terminations; ``None`` to take one from the operating system
    :param render_mode: ``"rgb_array"`` to draw the states of MuJoCo tasks, ``None`` for no images
    :param task: Id or specification of the task, for its time limit and for images. ``None`` for that of the model's
        environments, if there are any in this process
    :raises ValueError: If an argument is invalid, the world model was not trained, its network cannot imagine single steps,
        there is no state to start from, no time limit is known, or the states cannot be drawn
    """

    def __init__(
        self,
        model: Any,
        n_envs: int = 1,
        start_states: str | np.ndarray | dict[str, np.ndarray] = "first",
        max_episode_steps: int | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
        task: str | EnvSpec | None = None,
    ):
        check_integer("n_envs", n_envs, 1)
        if not isinstance(model, ImaginationMixin):
            raise ValueError(f"`model` must be AGDPPO or a GuidanceCallback, not {type(model).__name__}")
        self.imagination = model._present_imagination
        self.imagination.check_trained()
        try:
            self.imagination.world_model.check_horizon(1)
        except ValueError as error:
            raise ValueError(f'Single steps cannot be imagined: {error}. Train with the network "recurrent"') from None
        algorithm = self.imagination.model
        self.spec = task_of(algorithm.env) if task is None else gym.spec(task) if isinstance(task, str) else task
        self.max_episode_steps = self._time_limit(max_episode_steps)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'`render_mode` must be "rgb_array" or None, not {render_mode!r}')
        # Asked for by the constructor of the base class
        self.render_mode = render_mode
        super().__init__(n_envs, algorithm.observation_space, algorithm.action_space)
        self._starts = self._start_vectors(start_states)
        self._scene = None if render_mode is None else self._make_scene()
        self._states = self._starts[:0]
        self._actions = self._starts[:0]
        self._n_steps = np.zeros(n_envs, dtype=np.int64)
        self._set_generators(None)
        if seed is not None:
            self.seed(seed)

    def _time_limit(self, max_episode_steps: int | None) -> int:
        """
        :param max_episode_steps: As the user gives it
        :return: The time limit
        :raises ValueError: If it is invalid or unknown
        """
        if max_episode_steps is None:
            max_episode_steps = None if self.spec is None else self.spec.max_episode_steps
            if max_episode_steps is None:
                raise ValueError("The time limit of the task is not known here: give `max_episode_steps`, or `task`")
        check_integer("max_episode_steps", max_episode_steps, 1)
        return max_episode_steps

    def _start_vectors(self, start_states: str | np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        """
        :param start_states: See the class
        :return: Observation vectors, shape (N, observation_size)
        :raises ValueError: If there are none
        """
        imagination, codec = self.imagination, self.imagination.observation_codec
        if not isinstance(start_states, str):
            return imagination.start_states(batched(codec, codec.flatten(start_states)))
        if start_states not in ("first", "recent"):
            raise ValueError(f'`start_states` must be "first", "recent" or observations, not {start_states!r}')
        buffer = imagination.replay_buffer
        if len(buffer) == 0:
            raise ValueError("There are no real states to start from: call `load_replay_buffer`, or give `start_states`")
        if start_states == "recent":
            states = buffer.observations[buffer.recent_transitions(RECENT_ROWS)]
        else:
            rows = buffer.transitions_since(np.zeros_like(buffer.position))
            states = buffer.observations[rows][buffer.episode_starts(*rows)]
        return th.tensor(states, device=imagination.model.device)

    def _make_scene(self) -> Scene:
        """
        :return: What draws the states
        :raises ValueError: If they cannot be drawn
        """
        if self.spec is None:
            raise ValueError("The task is not known here, and cannot be drawn: give `task`")
        try:
            scene = Scene(self.spec, self.observation_space, self.num_envs)
        except ValueError as error:
            raise ValueError(f"{self.spec.id} cannot be drawn: {error}") from None
        self.metadata["render_fps"] = scene.env.metadata["render_fps"]
        return scene

    def _set_generators(self, seeds: Sequence[int] | None) -> None:
        """
        :param seeds: A seed for each environment, ``None`` to take one from the operating system
        """
        self._rng = np.random.default_rng(seeds)
        self._generator = self.imagination.generator(int(self._rng.integers(2**62)))

    def reset(self) -> VecEnvObs:
        seeds = [seed for seed in self._seeds if seed is not None]
        if seeds:
            self._set_generators(seeds)
        self._reset_seeds()
        self._reset_options()
        self._states = self._starts[:1].repeat(self.num_envs, 1)
        return self._begin_episodes(np.arange(self.num_envs))

    def _begin_episodes(self, indices: np.ndarray) -> VecEnvObs:
        """
        :param indices: Numbers of the environments whose episodes begin
        :return: Observations of all environments
        """
        drawn = self._starts[self._rng.integers(len(self._starts), size=len(indices))]
        self._states[indices] = drawn
        self._n_steps[indices] = 0
        for index, off_range in zip(indices.tolist(), self._off_range(drawn), strict=True):
            self.reset_infos[index] = {"off_range": off_range}
            if self._scene is not None:
                self._scene.reset(index)
        return self._observations(self._states)

    def _check_reset(self) -> None:
        """
        :raises ValueError: If the environments were not reset yet
        """
        if len(self._states) == 0:
            raise ValueError("Call `reset` before the first step or image")

    def step_async(self, actions: np.ndarray) -> None:
        """
        Begin a step.

        :param actions: Actions of all environments. Those outside of the bounds of a Box are clipped
        :raises ValueError: If they have a wrong shape, a value is invalid, or the environments were not reset yet
        """
        self._check_reset()
        space, given = self.action_space, np.asarray(actions)
        shape = (self.num_envs, *(space.shape or ()))
        if given.shape != shape:
            raise ValueError(f"`actions` must have shape {shape}, not {given.shape}")
        if isinstance(space, spaces.Box):
            given = np.clip(given, space.low, space.high)
        vectors = checked_vectors("actions", self.imagination.action_codec, space, given)
        self._actions = th.tensor(vectors, device=self._states.device)

    def step_wait(self) -> VecEnvStepReturn:
        segments = self.imagination.world_model.predict(self._states, self._actions[:, None], self._generator)
        observations = self._observations(segments.observations[:, 1])
        codec = self.imagination.observation_codec
        self._states = th.tensor(codec.encode(observations), device=self._states.device)
        rewards, terminated = (column[:, 0].cpu().numpy() for column in (segments.rewards, segments.terminations))
        self._n_steps += 1
        truncated = (self._n_steps >= self.max_episode_steps) & ~terminated
        dones = terminated | truncated
        columns = zip(truncated.tolist(), self._off_range(self._states), strict=True)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": cut_off, "off_range": share} for cut_off, share in columns]
        if self._scene is not None:
            self._scene.step(self._states.cpu().numpy())
        if dones.any():
            for index in np.flatnonzero(dones).tolist():
                infos[index]["terminal_observation"] = row_of(observations, index)
            observations = self._begin_episodes(np.flatnonzero(dones))
        return observations, rewards, dones, infos

    def _observations(self, vectors: th.Tensor) -> Any:
        """
        :param vectors: Observation vectors, shape (N, observation_size)
        :return: Observations as environments give them
        """
        return environment_observations(self.imagination.observation_codec, self.observation_space, vectors)

    def _off_range(self, states: th.Tensor) -> list[float]:
        """
        :param states: Observation vectors, shape (N, observation_size)
        :return: Distance of each from the observed range, see the class
        """
        normalizer = self.imagination.world_model.observation_normalizer
        low, high = normalizer.low, normalizer.high
        distance = th.maximum(low - states, states - high)
        is_off = distance > ROUNDING * th.maximum(low.abs(), high.abs())
        # Infinite where the range is a point
        return th.where(is_off, distance / (high - low), th.zeros_like(distance)).amax(1).tolist()

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self._scene is None:
            return [None] * self.num_envs
        self._check_reset()
        return self._scene.images(self._states.cpu().numpy())

    def close(self) -> None:
        if self._scene is not None:
            self._scene.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all environments, which have everything in common."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """
        :raises AttributeError: Always, since there are no single environments
        """
        raise AttributeError(f"Imagined environments have no method `{method_name}`")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

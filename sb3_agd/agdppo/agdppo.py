"""Advantage-guided diffusion PPO."""

import io
import itertools
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from inspect import signature
from multiprocessing.connection import wait
from typing import IO, Any, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_agd.agdppo.callback import GuidanceCallback, make_guide, make_schedule
from sb3_agd.agdppo.imagination import Imagination, ImaginationState
from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer
from sb3_agd.checkpoint.resume import ResumeCallback, RunState, discard_stale_replies
from sb3_agd.checkpoint.save_util import FILE_FORMAT, explain_misfit, newer_format, replaced_file
from sb3_agd.experience.replay_buffer import ReplayBuffer
from sb3_agd.experience.space_codecs import make_codec
from sb3_agd.world_model import DiffusionWorldModel, Guide, Segments
from sb3_agd.world_model.termination import TerminationFn
from sb3_agd.world_model.validation import check_integer

SelfAGDPPO = TypeVar("SelfAGDPPO", bound="AGDPPO")

# Arguments that AGDPPO has beyond PPO's
SETTINGS = [name for name in signature(GuidanceCallback).parameters if name not in ("progress_bar", "verbose")]


class FollowingGuidanceCallback(GuidanceCallback):
    """AGDPPO's own callback. Its settings are the model's attributes, which may change during training as those of PPO."""

    model: "AGDPPO"

    def _on_rollout_end(self) -> None:
        self.follow(self.model._make_guidance_callback())
        super()._on_rollout_end()

    @property
    def n_rounds(self) -> int:
        return max(1, round(self._buffer.buffer_size * self._buffer.n_envs / self.model.real_steps_per_update))

    def further_rounds(self) -> Iterator[int]:
        """
        :return: Numbers of the rounds after the first, each once it has begun. None where the first had no imagined
            transitions, and so all of the real ones
        """
        if self._buffer.n_imagined > 0:
            yield from itertools.takewhile(self._can_begin, range(1, self.n_rounds))

    def _can_begin(self, number: int) -> bool:
        """
        :param number: Number of a round after the first
        :return: Whether it has begun. A policy that has diverged imagines nothing more: its next real step tells, as with PPO
        """
        return all(bool(parameter.isfinite().all()) for parameter in self.model.policy.parameters()) and self.begin_round(
            number
        )


class AGDPPO(PPO):
    """
    Advantage-Guided Diffusion PPO: Proximal Policy Optimization whose updates also learn from trajectory segments
    that a diffusion world model imagines, from states chosen by the advantage of the current critic. All of PPO's arguments,
    defaults and methods stay as they are; with ``synthetic_ratio=0`` it is PPO.

    Paper: https://arxiv.org/abs/2604.09035

    :param policy: The policy model to use (MlpPolicy, or a custom ``ActorCriticPolicy``)
    :param env: The environment to learn from (if registered in Gym, can be str). Observations: Box without images,
        Discrete, MultiDiscrete, MultiBinary; actions: Box, Discrete, MultiDiscrete, MultiBinary
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per rollout
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel)
    :param batch_size: Minibatch size, real and imagined rows together
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress
        remaining (from 1 to 0).
    :param clip_range_vf: Clipping parameter for the value function,
        it can be a function of the current progress remaining (from 1 to 0). ``None``: no clipping
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Subclass of :class:`AugmentedRolloutBuffer` to use, ``None`` for that class itself
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates. By default, there is no limit
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators. Imagination has a private generator with the same seed
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param guidance: Objective of guided segments: ``"sag"`` or ``"eag"`` (Sigmoid or Exponential Advantage Guidance),
        ``"reward"``, ``"none"``, or a :class:`Guide` of your own
    :param guidance_scale: Strength of the guidance, per standard deviation of the advantage: segments are reweighted by
        ``exp(guidance_scale * objective)``. In training it is multiplied by the explained variance of the critic, so
        that a critic that knows nothing guides nothing. It can be a function of the current progress remaining (from 1
        to 0)
    :param n_candidates: Candidate segments for each real start state. With more than 1, the guide draws one of them, with a
        probability that grows with its objective. In training, a second segment is imagined without guidance from a random
        state along it, and only that one is learned from. With 1, the guide moves the imagined states along the gradient of
        its objective, and these segments are learned from, as in the paper
    :param horizon: Number of transitions of an imagined segment, best 1, 2 or a multiple of 4, see
        :class:`DiffusionWorldModel`
    :param synthetic_ratio: Imagined transitions per real one in each update. It can be a function of the current
        progress remaining (from 1 to 0). While it is 0, the world model is not trained either
    :param real_data_ratio: Share of the real transitions in each epoch, at least: where there are fewer, they are repeated.
        What the world model does not predict, such as a rare fall, is in the real ones only
    :param min_advantage_correlation: Imagination pauses while the advantages along imagined and along real segments with the
        same actions correlate less than this, in the mean over the newest 20 rollouts: the policy learns from the real
        transitions alone then, as with PPO. With -1 it never pauses
    :param n_denoising_steps: Number of calls of the denoiser per segment. With few, samples are close to the mean of the
        next-state distribution: use more in stochastic environments
    :param sampler: ``"flow"`` (flow matching, a handful of steps), ``"ddim"`` or ``"ddpm"`` (the paper's, with 128
        steps)
    :param world_model_gradient_steps: Updates of the world model per round (five times as many for the first)
    :param world_model_batch_size: Segments per update of the world model
    :param world_model_learning_rate: Learning rate of the world model. It can be a function of the current progress
        remaining (from 1 to 0)
    :param world_model_warmup: Real transitions before the world model is first fitted and used
    :param buffer_size: Rows for the real transitions that the world model is trained on, one for each and
        one for the last state of each episode; the oldest are overwritten
    :param world_model_kwargs: Further arguments of :class:`DiffusionWorldModel` (``network``,
        ``network_kwargs``, ``ema_decay``)
    :param termination_fn: The true rule of termination where it is known, in place of the learned one. It gets numpy
        arrays ``(observations, actions, next_observations)`` in raw units with one row per transition and returns
        one boolean per row
    :param real_steps_per_update: Real transitions per round, about. After a rollout of 1.5 times as many or more, the policy is updated
        in several rounds, each with its own part of the real transitions and with segments that the policy as it is then
        imagines in a world model that is trained on
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: If an argument is invalid or a space is not supported
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        guidance: str | Guide = "sag",
        guidance_scale: float | Schedule = 1.0,
        n_candidates: int = 4,
        horizon: int = 8,
        synthetic_ratio: float | Schedule = 8.0,
        real_data_ratio: float = 0.2,
        min_advantage_correlation: float = 0.25,
        n_denoising_steps: int = 2,
        sampler: str = "flow",
        world_model_gradient_steps: int = 50,
        world_model_batch_size: int = 128,
        world_model_learning_rate: float | Schedule = 3e-3,
        world_model_warmup: int = 1000,
        buffer_size: int = 1_000_000,
        world_model_kwargs: dict[str, Any] | None = None,
        termination_fn: TerminationFn | None = None,
        real_steps_per_update: int = 256,
        _init_setup_model: bool = True,
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().__init__(
                policy,
                env,
                learning_rate=learning_rate,
                n_steps=n_steps,
                batch_size=batch_size,
                n_epochs=n_epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range=clip_range,
                clip_range_vf=clip_range_vf,
                normalize_advantage=normalize_advantage,
                ent_coef=ent_coef,
                vf_coef=vf_coef,
                max_grad_norm=max_grad_norm,
                use_sde=use_sde,
                sde_sample_freq=sde_sample_freq,
                rollout_buffer_class=rollout_buffer_class or AugmentedRolloutBuffer,
                rollout_buffer_kwargs=rollout_buffer_kwargs,
                target_kl=target_kl,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=seed,
                device=device,
                _init_setup_model=False,
            )
        # PPO advises against minibatches larger than the real part of a rollout, but here imagined rows fill them
        filled = synthetic_ratio != 0 and self.env is not None and batch_size % (n_steps * self.n_envs) == 0
        for warning in caught:
            if not (filled and str(warning.message).startswith("You have specified a mini-batch size")):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self.guidance = guidance
        self.guidance_scale = guidance_scale
        self.n_candidates = n_candidates
        self.horizon = horizon
        self.synthetic_ratio = synthetic_ratio
        self.real_data_ratio = real_data_ratio
        self.min_advantage_correlation = min_advantage_correlation
        self.n_denoising_steps = n_denoising_steps
        self.sampler = sampler
        self.world_model_gradient_steps = world_model_gradient_steps
        self.world_model_batch_size = world_model_batch_size
        self.world_model_learning_rate = world_model_learning_rate
        self.world_model_warmup = world_model_warmup
        self.buffer_size = buffer_size
        self.world_model_kwargs = world_model_kwargs
        self.termination_fn = termination_fn
        self.real_steps_per_update = real_steps_per_update
        # Only during training
        self._guidance_callback: FollowingGuidanceCallback | None = None
        self._imagination_state: ImaginationState | None = None
        self.file_format = FILE_FORMAT
        # Only in checkpoints, and between loading one and the start of training
        self.run_state: RunState | None = None
        # Whether the newest training ended with an interrupt or an error
        self.is_interrupted = False

        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = PPO._wrap_env(env, verbose, monitor_wrapper)
        # Refuse what cannot be imagined before SB3 advises a policy for it
        make_codec(wrapped.observation_space, "observation")
        make_codec(wrapped.action_space, "action")
        return wrapped

    def _setup_model(self) -> None:
        guidance_callback = self._make_guidance_callback()
        if self.rollout_buffer_class is None or not issubclass(self.rollout_buffer_class, AugmentedRolloutBuffer):
            raise ValueError(
                f"`rollout_buffer_class` must be a subclass of AugmentedRolloutBuffer, not {self.rollout_buffer_class}. "
                "To start from a file of PPO, call `set_parameters(file, exact_match=False)` on a new model"
            )
        super()._setup_model()
        self.imagination: Imagination = guidance_callback.build(self, self._imagination_state)
        self._imagination_state = self.imagination.state

    def _make_guidance_callback(self) -> FollowingGuidanceCallback:
        """
        :return: A callback with the present values of all settings
        :raises ValueError: If a setting is invalid
        """
        check_integer("real_steps_per_update", self.real_steps_per_update, 1)
        return FollowingGuidanceCallback(**{name: getattr(self, name) for name in SETTINGS}, verbose=self.verbose)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        guidance_callback = self._make_guidance_callback()
        guidance_callback.go_on_with(self.imagination)
        guidance_callback.progress_bar = progress_bar
        self._guidance_callback = guidance_callback
        if isinstance(callback, list):
            callback = CallbackList(callback)
        elif not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        resuming = [] if self.run_state is None else [ResumeCallback()]
        # Before the user's callbacks: a checkpoint holds the step that it was taken at
        return super()._init_callback(CallbackList([*resuming, guidance_callback, callback]), progress_bar)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        normalization = self.get_vec_normalize_env()
        if reset_num_timesteps or self._last_obs is None:
            # The environments are about to be reset: this is a new run. If that is interrupted, they must be once more
            self._last_obs = None
            self.run_state = None
        elif self.run_state is not None and self.run_state.environments is None:
            # The episodes that were under way are lost
            self._last_obs = None
            self.run_state.restore_statistics(self)
        elif self.run_state is None and normalization is not None and not hasattr(normalization, "old_obs"):
            # A model was loaded into new environments without a reset, and is no checkpoint with their state
            self._last_obs = None
        if self._last_obs is None:
            discard_stale_replies(self.env)
        self.imagination.recorder.keep_statistics()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except BaseException:
            # The environments may have taken a step that nobody took note of: the next training resets them, unless they are
            # closed before
            discard_stale_replies(env)
            self._last_obs = None
            self.imagination.recorder.begin_episodes()
            raise

    def train(self) -> None:
        """Update the policy, after a long rollout in several rounds."""
        super().train()
        if self._guidance_callback is not None:
            for _ in self._guidance_callback.further_rounds():
                super().train()

    def learn(
        self: SelfAGDPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "AGDPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAGDPPO:
        self.is_interrupted = False
        try:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        except BaseException as error:
            self.is_interrupted = True
            if isinstance(error, (EOFError, ConnectionError)):
                self._name_dead_processes(error)
            raise
        finally:
            self._guidance_callback = None

    def _name_dead_processes(self, error: EOFError | ConnectionError) -> None:
        """
        :param error: What came of the connection to an environment in another process
        :raises RuntimeError: If such processes have died
        """
        processes = getattr(getattr(self.env, "unwrapped", None), "processes", [])
        # A pipe breaks a moment before its process is known to be dead
        wait([process.sentinel for process in processes], timeout=1)
        dead = [index for index, process in enumerate(processes) if not process.is_alive()]
        if dead:
            raise RuntimeError(
                f"The processes of environments {dead} have died at step {self.num_timesteps}. The model is intact: it can be "
                "saved, or go on with `set_env` and `learn(..., reset_num_timesteps=False)`"
            ) from error

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators (python, numpy, pytorch, gym, action_space), and of the private one of
        imagination.

        :param seed: ``None`` to leave them as they are
        """
        super().set_random_seed(seed)
        # While the model is built, there is none yet
        if seed is not None and hasattr(self, "imagination"):
            self.imagination.state.rng = np.random.default_rng(seed)

    @property
    def world_model(self) -> DiffusionWorldModel:
        """The diffusion world model."""
        return self.imagination.world_model

    @property
    def replay_buffer(self) -> ReplayBuffer:
        """The real transitions that the world model is trained on."""
        return self.imagination.replay_buffer

    def imagine(
        self,
        observations: np.ndarray,
        guidance: str | Guide | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
    ) -> Segments[np.ndarray]:
        """
        Imagine one segment from each of the given states with the current policy. With ``n_candidates`` above 1, training takes
        start states from guided segments and learns from unguided ones (``guidance="none"``).

        :param observations: Observations as the environment gives them, not as ``VecNormalize`` does, shape
            (B, observation_dim). With another wrapper around ``VecNormalize``, frame stacking for example, those that this
            one puts out
        :param guidance: See the constructor; ``None`` for the model's own
        :param guidance_scale: Strength of the guidance, taken as it is; ``None`` for the model's own at the current
            progress
        :param seed: Seed of all noise; ``None`` to draw on from the private generator
        :return: Segments in raw environment units: ``observations`` (B, H + 1, observation_dim) with the given
            states first, ``actions`` (B, H, action_dim) as the environment would receive them, ``rewards``,
            ``terminations`` and ``mask``, each (B, H). What lies behind a termination is masked
        :raises ValueError: If an argument is invalid, or the world model was not trained yet
        """
        codec, action_codec = self.imagination.observation_codec, self.imagination.action_codec
        observations = np.asarray(observations)
        flat_shape = (int(np.prod(codec.shape)),)
        shapes = {flat_shape, codec.shape} | ({()} if codec.shape == (1,) else set())
        if observations.ndim == 0 or observations.shape[1:] not in shapes:
            raise ValueError(f"`observations` must have shape (B, {flat_shape[0]}), not {observations.shape}")
        if len(observations) == 0:
            raise ValueError("`observations` must hold at least one start state")
        if not np.all(np.isfinite(observations)):
            raise ValueError("`observations` must be finite, there is NaN or infinity in them")
        guide = make_guide(self.guidance if guidance is None else guidance)
        scale = make_schedule("guidance_scale", self.guidance_scale if guidance_scale is None else guidance_scale)
        try:
            starts = th.as_tensor(codec.encode(observations), device=self.device)
        except ValueError as error:
            raise ValueError(f"`observations` must be of {self.observation_space}. {error}") from None
        self.imagination.check_trained()
        generator = self.imagination.generator(seed)
        progress_remaining = max(0.0, self._current_progress_remaining)
        segments, _ = self.imagination.imagine(starts, guide, scale(progress_remaining), self.n_candidates, generator)
        states = codec.elements(segments.observations)
        states[:, 0] = observations.reshape(len(observations), -1)
        actions = action_codec.elements(segments.actions)
        return replace(segments.map(lambda array: array.cpu().numpy()), observations=states, actions=actions)

    @classmethod
    def load(
        cls: type[SelfAGDPPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAGDPPO:
        """
        Load the model from a zip-file. All arguments are SB3's.

        :param path: Path to the file, or an open file
        :param env: Environment to go on in; ``None`` if only predictions and imagination are needed
        :param device: Device on which the code should run
        :param custom_objects: Objects to take in place of those in the file, by name
        :param print_system_info: Whether to print on which system the file was made, and the present one
        :param force_reset: Whether the environment is reset before training. With ``False``, a checkpoint of
            :class:`ResumableCheckpointCallback` goes on in the middle of its episodes
        :param kwargs: Settings to change
        :return: New model
        :raises OSError: If the file cannot be read
        :raises ValueError: If the file is damaged or does not fit
        """
        try:
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
            if kwargs.get("seed") is not None and model.run_state is None:
                # The private generator in the file comes from another seed, but a run that is resumed goes on with it
                model.set_random_seed(kwargs["seed"])
            if model.file_format > FILE_FORMAT:
                raise ValueError(newer_format(model.file_format))
            # It will be saved in the present one
            model.file_format = FILE_FORMAT
        except OSError:
            raise
        except Exception as error:  # Damaged and foreign files raise errors of many kinds
            reason = explain_misfit(path, error) if isinstance(path, (str, pathlib.Path)) else str(error)
            raise ValueError(f"{path} cannot be loaded as {cls.__name__}: {reason}") from error
        return model

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. A file of that name is replaced
        only once the new one is complete.

        :param path: Path to the file, or an open file; missing folders are created
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        :raises OSError: If the file cannot be written
        """
        if isinstance(path, (str, pathlib.Path)):
            with replaced_file(path, suffix="zip") as file:
                super().save(cast(io.BufferedIOBase, file), exclude, include)
        else:
            super().save(path, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the real transitions as plain arrays (npz, whatever the name of the file). A file of that name is replaced
        only once the new one is complete.

        :param path: Path to the file, or an open file; missing folders are created
        :raises OSError: If the file cannot be written
        """
        if isinstance(path, (str, pathlib.Path)):
            with replaced_file(path, suffix="npz") as file:
                self.replay_buffer.save(file)
        else:
            self.replay_buffer.save(cast(IO[bytes], path))

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load the real transitions.

        :param path: Path to the file, or an open file
        :param truncate_last_traj: Whether the episodes that were under way when the file was written count as
            interrupted. They must, unless the environments go on from the very same states
        :raises ValueError: If the file is damaged or comes from other spaces or settings; the present transitions
            are kept then
        """
        file = open_path(path, "r", verbose=self.verbose, suffix="npz")
        try:
            self.replay_buffer.load(file)
        except ValueError as error:
            raise ValueError(f"Cannot load transitions from {path}: {error}") from error
        finally:
            if isinstance(path, (str, pathlib.Path)):
                file.close()
        if truncate_last_traj:
            self.replay_buffer.end_episodes()
        self.imagination.transitions_loaded()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "imagination", "_guidance_callback"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "world_model", "world_model.optimizer"], variables

"""Advantage-guided diffusion PPO."""

import warnings
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_agd.agdppo.callback import GuidanceCallback
from sb3_agd.agdppo.imagination_mixin import ImaginationMixin
from sb3_agd.agdppo.rollout_buffer import AugmentedDictRolloutBuffer, AugmentedRolloutBuffer
from sb3_agd.checkpoint.resumable_ppo import ResumablePPO, as_callback
from sb3_agd.experience.space_codecs import make_codec
from sb3_agd.imagination import ActionSampler, Guide, Imagination, ImaginationState, Settings
from sb3_agd.world_model.termination import TerminationFn

SelfAGDPPO = TypeVar("SelfAGDPPO", bound="AGDPPO")


class AGDPPO(ImaginationMixin, ResumablePPO):
    """
    Advantage-Guided Diffusion PPO: Proximal Policy Optimization whose updates also learn from trajectory segments
    that a diffusion world model imagines, from states chosen by the advantage of the current critic. All of PPO's arguments,
    defaults and methods stay as they are; with ``synthetic_ratio=0`` it is PPO.

    Paper: https://arxiv.org/abs/2604.09035

    :param policy: The policy model to use (MlpPolicy, MultiInputPolicy for Dict observations, or a custom
        ``ActorCriticPolicy``)
    :param env: The environment to learn from (if registered in Gym, can be str). Observations: Box without images,
        Discrete, MultiDiscrete, MultiBinary, or a Dict of these; actions: Box, Discrete, MultiDiscrete, MultiBinary
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
    :param _init_setup_model: Whether or not to build the network at the creation of the instance

    The other arguments are the fields of :class:`Settings`, which documents them. All arguments are attributes of the same
    names, too.

    :raises ValueError: If an argument is invalid or a space is not supported
    """

    imagination: Imagination

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
        guidance: str | Guide = Settings.guidance,
        guidance_mode: str = Settings.guidance_mode,
        guidance_scale: float | Schedule = Settings.guidance_scale,
        n_candidates: int = Settings.n_candidates,
        horizon: int = Settings.horizon,
        synthetic_ratio: float | Schedule = Settings.synthetic_ratio,
        real_data_ratio: float = Settings.real_data_ratio,
        min_advantage_correlation: float = Settings.min_advantage_correlation,
        n_denoising_steps: int = Settings.n_denoising_steps,
        sampler: str = Settings.sampler,
        world_model_gradient_steps: int = Settings.world_model_gradient_steps,
        world_model_batch_size: int = Settings.world_model_batch_size,
        world_model_learning_rate: float | Schedule = Settings.world_model_learning_rate,
        world_model_warmup: int = Settings.world_model_warmup,
        buffer_size: int = Settings.buffer_size,
        world_model_kwargs: dict[str, Any] | None = Settings.world_model_kwargs,
        termination_fn: TerminationFn | None = Settings.termination_fn,
        real_steps_per_update: int = Settings.real_steps_per_update,
        policy_data: str = Settings.policy_data,
        action_sampler: ActionSampler | None = Settings.action_sampler,
        start_states: str = Settings.start_states,
        _init_setup_model: bool = True,
    ):
        # First of all, while the arguments are the only local variables
        arguments = dict(locals())
        ppo = {name: arguments[name] for name in signature(PPO.__init__).parameters if name != "self"}
        ppo |= {"rollout_buffer_class": rollout_buffer_class or AugmentedRolloutBuffer, "_init_setup_model": False}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().__init__(**ppo)
        # PPO advises against minibatches larger than the real part of a rollout, but here imagined rows fill them
        filled = synthetic_ratio != 0 and self.env is not None and batch_size % (n_steps * self.n_envs) == 0
        for warning in caught:
            if not (filled and str(warning.message).startswith("You have specified a mini-batch size")):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self._keep_settings(arguments)
        # Only during training
        self._guidance_callback: GuidanceCallback | None = None
        self._imagination_state: ImaginationState | None = None
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
        settings = self.settings
        buffer_class = self.rollout_buffer_class
        if not (isinstance(buffer_class, type) and issubclass(buffer_class, AugmentedRolloutBuffer)):
            raise ValueError(
                f"`rollout_buffer_class` must be a subclass of AugmentedRolloutBuffer, not {buffer_class}. "
                "To start from a file of PPO, call `set_parameters(file, exact_match=False)` on a new model"
            )
        extractor = self.policy_kwargs.get("features_extractor_class", CombinedExtractor)
        takes_parts = issubclass(self.policy_class, MultiInputActorCriticPolicy) and issubclass(extractor, CombinedExtractor)
        if takes_parts and not isinstance(self.observation_space, spaces.Dict):
            kind = type(self.observation_space).__name__
            raise ValueError(f"You must use `MlpPolicy` when working with a {kind} observation space, not MultiInputPolicy")
        if isinstance(self.observation_space, spaces.Dict) and self.rollout_buffer_class is AugmentedRolloutBuffer:
            self.rollout_buffer_class = AugmentedDictRolloutBuffer
        super()._setup_model()
        self.imagination = Imagination(self, settings, self._imagination_state)
        self._imagination_state = self.imagination.state

    @property
    def settings(self) -> Settings:
        """The present settings, checked."""
        return Settings.of(self)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        bar = ProgressBarCallback() if progress_bar else None
        guidance_callback = GuidanceCallback(**vars(self.settings), verbose=self.verbose)
        guidance_callback.attach(self, bar)
        self._guidance_callback = guidance_callback
        # Before the user's callbacks: a checkpoint holds the step that it was taken at
        callbacks = [guidance_callback, as_callback(callback)]
        return super()._init_callback(CallbackList(callbacks if bar is None else [*callbacks, bar]))

    def train(self) -> None:
        """
        Update the policy, after a long rollout in several rounds. With ``policy_data="imagined"``, only on imagined
        transitions.
        """
        if self._guidance_callback is None or self._guidance_callback.has_policy_data:
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
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        finally:
            self._guidance_callback = None

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

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "imagination", "_guidance_callback"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "world_model", "world_model.optimizer"], variables

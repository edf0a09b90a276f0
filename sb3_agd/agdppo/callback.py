"""The callback that puts imagined segments into the rollout buffer before each policy update."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule

from sb3_agd.agdppo.estimates import bound_estimates, renew_estimates, take_over_rewards
from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer
from sb3_agd.agdppo.saved_callback import SavedCallback
from sb3_agd.agdppo.training_log import TrainingLog, shown_progress
from sb3_agd.checkpoint.resume import check_sees_each_step, discard_stale_replies
from sb3_agd.experience import randomness
from sb3_agd.imagination import ActionSampler, Guide
from sb3_agd.imagination.imagination import Imagination
from sb3_agd.imagination.settings import Guidance, Settings
from sb3_agd.world_model.termination import TerminationFn

# The first fit takes this many times the updates of the later ones
WARMUP_FITS = 5
# With a higher loss, a mean square in standard deviations of the data, the world model is not used: the mean of the data
# would have 1, untrained networks have up to about 10
MAX_LOSS = 100.0
AFTER_DIVERGENCE = "Training goes on without imagined data where this happens. Consider a lower `world_model_learning_rate`."
# Rollouts whose correlations decide whether imagination can be relied on
N_CORRELATIONS = 20


class GuidanceCallback(SavedCallback):
    """
    Learn a diffusion world model from the real rollouts and, before each policy update, augment the rollout buffer with
    imagined segments, from states chosen by the advantage of the current critic.

    AGDPPO installs this callback by itself. It also works with other on-policy algorithms of SB3 and sb3-contrib, such as
    A2C and TRPO, if they are created with ``rollout_buffer_class=AugmentedRolloutBuffer``.

    Paper: https://arxiv.org/abs/2604.09035

    All arguments but the last one are the fields of :class:`Settings`, which documents them. They are attributes, too.

    :param verbose: Verbosity level: 0 for no output, 1 to say when the world model is used for the first time
    :raises ValueError: If an argument is invalid
    """

    def __init__(
        self,
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
        verbose: int = 0,
    ):
        # First of all, while the arguments are the only local variables
        arguments = dict(locals())
        super().__init__(verbose)
        self._keep_settings(arguments)
        # The settings are attributes of this object or of AGDPPO, which also divides its updates into rounds
        self._owner: Any = self
        self._has_rounds = False
        self._progress_bar: ProgressBarCallback | None = None
        # As they were at the start of training or at the end of the newest rollout
        self.settings = Settings.of(self)
        self.imagination: Imagination | None = None
        self._log = TrainingLog()
        # Stays true if training ends with an exception
        self._is_training = False

    def attach(self, model: Any, progress_bar: ProgressBarCallback | None) -> None:
        """
        Use the settings, the world model and the replay buffer of AGDPPO.

        :param model: AGDPPO
        :param progress_bar: SB3's progress bar, which also shows the progress of the first fit of the world model
        """
        self._owner = model
        self._has_rounds = True
        self._progress_bar = progress_bar
        self.imagination = model.imagination

    @property
    def _buffer(self) -> AugmentedRolloutBuffer:
        """The algorithm's rollout buffer."""
        assert isinstance(self.model, OnPolicyAlgorithm) and isinstance(self.model.rollout_buffer, AugmentedRolloutBuffer)
        return self.model.rollout_buffer

    def _init_callback(self) -> None:
        check_sees_each_step(self)
        if not isinstance(self.model, OnPolicyAlgorithm) or not isinstance(self.model.rollout_buffer, AugmentedRolloutBuffer):
            raise ValueError(
                f"GuidanceCallback needs an on-policy algorithm with `rollout_buffer_class=AugmentedRolloutBuffer`, "
                f"{type(self.model).__name__} has none"
            )
        installed = getattr(self.model, "imagination", None)
        if installed is not None and self.imagination is not installed:
            raise ValueError(f"{type(self.model).__name__} installs a GuidanceCallback by itself: give its arguments there")
        self._update_settings()
        if self.imagination is None:
            self.imagination = Imagination(self.model, self.settings)
        if self.imagination.model is not self.model:
            self.imagination.attach(self.model)

    def _on_training_start(self) -> None:
        imagination, model = self.imagination, self.model
        assert imagination is not None
        check_sees_each_step(self)
        self._log.start()
        # `learn` has reset the environments, or a checkpoint is about to restore them
        has_begun = bool(np.all(model._last_episode_starts)) and not imagination.recorder.has_seen(model._last_obs)
        is_resumed = getattr(model, "run_state", None) is not None
        if self._is_training or not (has_begun or is_resumed or imagination.recorder.knows_environments()):
            # The last training was interrupted, perhaps in the middle of a step that was not recorded, or others have
            # moved the environments since: SB3's last observations may be of another state than they are in
            env = self.training_env
            discard_stale_replies(env)
            model._last_obs = env.reset()  # type: ignore[assignment]
            model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
            has_begun = True
        self._is_training = True
        if has_begun:
            imagination.recorder.close_episodes()
        if self.settings.update_interval(self._n_real) > self._n_real and self.settings.synthetic_ratio != 0:
            self._log.warn_once(
                "short rollouts",
                f"Rollouts have {self._n_real} transitions, and imagination takes place once per `real_steps_per_update`, "
                f"{self.settings.real_steps_per_update}: most of the time, {self._without_imagination}. To change that, "
                "choose a higher `n_steps` or a lower `real_steps_per_update`",
            )

    def _on_training_end(self) -> None:
        self._is_training = False
        settings = self.settings
        if self.world_model.is_trained or settings.synthetic_ratio == 0:
            return
        is_warm = self.replay_buffer.holds(settings.world_model_warmup)
        if is_warm and self.num_timesteps >= settings.update_interval(self._n_real):
            # A schedule is 0, or each fit has failed, with a warning
            return
        cause = "real_steps_per_update" if is_warm else "world_model_warmup"
        self._log.warn_once(
            "no imagination",
            f"Training ended after {self.num_timesteps} steps, before imagination began (`{cause}`, "
            f"{getattr(settings, cause)}): no policy update had imagined transitions",
        )

    def _on_rollout_start(self) -> None:
        assert self.imagination is not None
        self.imagination.start_rollout()

    def _on_step(self) -> bool:
        assert self.imagination is not None
        self.imagination.recorder.record(self.locals)
        return True

    def _update_settings(self) -> None:
        """
        Read the present settings.

        :raises ValueError: If one is invalid, or may not change any more
        """
        settings = Settings.of(self._owner)
        if self.imagination is not None:
            self.imagination.settings.check_successor(settings)
            self.imagination.settings = settings
        self.settings = settings

    def _on_rollout_end(self) -> None:
        imagination = self.imagination
        assert imagination is not None
        self._update_settings()
        imagination.finish_rollout(self._buffer)
        if self._is_due:
            # Before it is trained on them
            if self._n_imagined > 0 and self.world_model.is_trained:
                self._test(imagination)
            if self._make_usable(imagination):
                take_over_rewards(imagination, self._buffer)
                bound_estimates(imagination, self._buffer, self.locals["values"], self.locals["dones"])
                self._augment(imagination, 0)
        self._record({"critic_explained_variance": imagination.state.critic_explained_variance})
        self._log.write(self.logger, self._buffer, not self._is_reliable(imagination))

    def further_rounds(self) -> Iterator[int]:
        """
        Rounds of updates after the first one. At the start of each, the world model is trained further, and newly imagined
        transitions replace those of the round before.

        :return: Their numbers. There are none if the first round had no imagined transitions: it had all of the real ones
        """
        if self._buffer.n_imagined > 0:
            yield from itertools.takewhile(self._begin_round, range(1, self.n_rounds))

    @property
    def has_policy_data(self) -> bool:
        """Whether the rollout buffer holds what the policy is to learn from."""
        return self.settings.policy_data == "mixed" or self._buffer.n_imagined > 0

    @property
    def _without_imagination(self) -> str:
        """What happens in an update without imagined transitions."""
        if self._has_rounds and self.settings.policy_data == "imagined":
            return 'the policy is not updated (`policy_data="imagined"`)'
        return "the policy learns from real transitions alone"

    @property
    def n_rounds(self) -> int:
        """Number of rounds that the algorithm updates the policy in after each rollout."""
        if not self._has_rounds:
            return 1
        return max(1, round(self._n_real / self.settings.real_steps_per_update))

    def _begin_round(self, number: int) -> bool:
        """
        :param number: Number of a round after the first
        :return: Whether there is something to learn from and the policy is finite. If it is not, its next real step ends with
            an error, as with PPO
        """
        assert self.imagination is not None
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.policy.parameters()):
            return False
        is_usable = self._make_usable(self.imagination)
        if not is_usable and self.settings.policy_data == "imagined":
            return False
        renew_estimates(self.imagination, self._buffer)
        if is_usable:
            self._augment(self.imagination, number)
        else:
            self._buffer.augment_nothing(number, self.n_rounds)
        return True

    @property
    def _progress_remaining(self) -> float:
        """The remaining progress, from 1 to 0: SB3 updates its own figure only after the end of the rollout."""
        return max(0.0, 1.0 - self.num_timesteps / self.model._total_timesteps)

    @property
    def _n_real(self) -> int:
        """Number of real transitions of a rollout."""
        return self._buffer.buffer_size * self._buffer.n_envs

    @property
    def _is_due(self) -> bool:
        """Whether the newest rollout has completed another interval of :meth:`Settings.update_interval`."""
        interval = self.settings.update_interval(self._n_real)
        return self.num_timesteps // interval > (self.num_timesteps - self._n_real) // interval

    @property
    def _synthetic_ratio(self) -> float:
        """Present number of imagined transitions per real one."""
        return self.settings.scheduled("synthetic_ratio", self._progress_remaining)

    @property
    def _n_imagined(self) -> int:
        """Number of transitions to imagine in a round, rounded: 0 if a schedule is close to 0."""
        return round(self._synthetic_ratio * self._n_real / self.n_rounds)

    def _guidance(self, imagination: Imagination) -> Guidance:
        """
        :param imagination: World model and data
        :return: Present guidance, scaled by the explained variance of the critic
        """
        return imagination.effective_guidance(self.settings.guidance_at(self._progress_remaining))

    def _make_usable(self, imagination: Imagination) -> bool:
        """
        Train the world model, if that is due.

        :param imagination: World model and data
        :return: Whether the world model can be used for this update
        """
        if self._n_imagined == 0:
            return False
        # A model loaded without its transitions imagines at once, but a fit to a few new ones would spoil its world model
        is_usable = self.world_model.is_trained
        if imagination.replay_buffer.holds(self.settings.world_model_warmup):
            is_usable = self._fit(imagination)
        return is_usable and self._is_reliable(imagination)

    def _augment(self, imagination: Imagination, number: int) -> None:
        """
        Put imagined transitions into the rollout buffer.

        :param imagination: World model and data
        :param number: Number of the round, from 0
        """
        # Up to rounding errors, the lowest number that is enough
        share = self.settings.real_data_ratio
        n_repeats = max(1, math.ceil(self._synthetic_ratio * share / (1 - share) - 1e-9))
        if self.settings.policy_data == "imagined":
            n_repeats = 0
        with self._log.timed("imagine"):
            rows, masked = imagination.imagine_rows(self._guidance(imagination), self._n_imagined)
        self._buffer.augment(rows, imagination.state.rng, n_repeats, number, self.n_rounds)
        self._log.count(self._buffer.n_imagined)
        self._record({"masked_share": masked})
        if self.settings.guidance_mode == "gradient":
            self._record({"guidance_norm": self.world_model.guidance_norm.item()})

    def _record(self, figures: dict[str, float]) -> None:
        """
        :param figures: Figures to log, by name
        """
        for name, figure in figures.items():
            self.logger.record(f"agd/{name}", figure)

    def _test(self, imagination: Imagination) -> None:
        """
        Test the world model on the newest rollout.

        :param imagination: World model and data
        """
        with self._log.timed("imagine"):
            errors = imagination.test()
        if errors["missed_randomness"] > randomness.MIN_MISSED_RANDOMNESS:
            self._log.warn_once("randomness", randomness.WARNING)
        figures = {
            "held_out_error_first": errors["states"][0],
            "held_out_error": errors["states"][-1],
            "imagined_termination_rate": errors["imagined_terminations"],
            "real_termination_rate": errors["real_terminations"],
            "advantage_correlation": errors["advantage_correlation"],
        }
        # Undefined if no episode was long enough, or there is nothing to predict
        known = {name: figure.item() for name, figure in figures.items() if not figure.isnan()}
        self._record(known)
        if "advantage_correlation" in known:
            state = imagination.state
            state.correlations = (*state.correlations, known["advantage_correlation"])[-N_CORRELATIONS:]

    def _is_reliable(self, imagination: Imagination) -> bool:
        """
        :param imagination: World model and data
        :return: Whether imagined advantages have correlated with real ones lately, or too few rollouts are known to say
        """
        correlations = imagination.state.correlations
        if len(correlations) < N_CORRELATIONS or np.mean(correlations) >= self.settings.min_advantage_correlation:
            return True
        self._log.warn_once(
            "correlation",
            f"Imagination pauses: in the last {N_CORRELATIONS} rollouts, the correlation of advantages along imagined and "
            f"real segments was {np.mean(correlations):.2f}, below `min_advantage_correlation`. Until it is higher, "
            f"{self._without_imagination}. A shorter `horizon` or more `world_model_gradient_steps` may help; "
            "`synthetic_ratio=0` saves the time for the world model.",
        )
        return False

    def _fit(self, imagination: Imagination) -> bool:
        """
        Train the world model on all stored transitions.

        :param imagination: World model and data
        :return: Whether the world model can be used: if not, this update has real transitions only
        """
        settings, first = self.settings, not self.world_model.is_trained
        gradient_steps = settings.world_model_gradient_steps * (WARMUP_FITS if first else 1)
        learning_rate = settings.scheduled("world_model_learning_rate", self._progress_remaining)
        with self._log.timed("fit"), shown_progress(self._progress_bar, gradient_steps if first else 0) as on_update:
            try:
                losses = imagination.fit(gradient_steps, settings.world_model_batch_size, learning_rate, on_update)
            except FloatingPointError as error:
                self._log.warn_once("divergence", f"{error}. Its last good weights are restored. {AFTER_DIVERGENCE}")
                return False
        loss = losses["denoising_loss"]
        self._record({"world_model_loss": loss, "termination_loss": losses["termination_loss"]})
        diverged = loss > MAX_LOSS
        if diverged:
            self._log.warn_once("loss", f"The world model has diverged: its loss is {loss:.3g}. {AFTER_DIVERGENCE}")
        elif first and self.verbose >= 1:
            print(f"Imagination begins after {self.num_timesteps} steps")
        return not diverged

"""The callback that puts imagined segments into the rollout buffer before each update."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from tqdm import tqdm

from sb3_agd.agdppo.guidance_probe import GuidanceProbe
from sb3_agd.agdppo.imagination import Imagination, ImaginationState
from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer
from sb3_agd.checkpoint.resume import check_sees_each_step, discard_stale_replies
from sb3_agd.world_model import DiffusionWorldModel, Guide
from sb3_agd.world_model.guides import GUIDES
from sb3_agd.world_model.termination import TerminationFn
from sb3_agd.world_model.validation import check_arguments, check_integer, check_number

# The first fit takes this many times the updates of the later ones
WARMUP_FITS = 5
# With a higher loss, a mean square in standard deviations of the data, the world model is not used: the mean of the data
# would have 1, untrained networks have up to about 10
MAX_LOSS = 100.0
AFTER_DIVERGENCE = "Training goes on without imagined data where this happens. Consider a lower `world_model_learning_rate`."
# Rollouts whose correlations decide whether imagination is to be relied on
N_CORRELATIONS = 20
# Settings that the world model is not built with, so that they may change during training
CHANGEABLE = (
    "guide",
    "guidance_scale",
    "n_candidates",
    "synthetic_ratio",
    "real_data_ratio",
    "min_advantage_correlation",
    "world_model_gradient_steps",
    "world_model_batch_size",
    "world_model_learning_rate",
    "world_model_warmup",
)
# Arguments of the world model that have no keyword argument of their own
WORLD_MODEL_KWARGS = {"network", "network_kwargs", "ema_decay", "open_loop_length"}


def make_guide(guidance: str | Guide) -> Guide | None:
    """
    :param guidance: Name of a guide, ``"none"``, or a guide
    :return: The guide, ``None`` for no guidance
    :raises ValueError: If there is no such guide
    """
    if isinstance(guidance, Guide):
        return guidance
    if guidance == "none":
        return None
    if not isinstance(guidance, str) or guidance not in GUIDES:
        raise ValueError(f"`guidance` must be one of {[*GUIDES, 'none']} or an instance of `Guide`, not {guidance!r}")
    return GUIDES[guidance]()


def make_schedule(name: str, value: float | Schedule, positive: bool = False) -> Schedule:
    """
    :param name: Name of an argument
    :param value: A number, or a function of the remaining progress (from 1 to 0)
    :param positive: Whether zero is invalid at the start
    :return: The schedule, which checks each of its values
    :raises ValueError: If the value is not a finite number, or is negative
    """

    def check(number: Any, positive: bool = False) -> float:
        valid = isinstance(number, (int, float, np.number)) and np.isfinite(number) and number >= 0
        if not valid or (positive and number == 0):
            expected = "a positive number" if positive else "a number of at least 0"
            raise ValueError(f"`{name}` must be {expected} or a schedule of such numbers, not {number!r}")
        return float(number)

    if not callable(value):
        check(value, positive)
    # SB3 knows no numbers of numpy's
    schedule = FloatSchedule(value if callable(value) else float(value))
    check(schedule(1.0), positive)
    return lambda progress_remaining: check(schedule(progress_remaining))


class GuidanceCallback(BaseCallback):
    """
    Learn a diffusion world model from the real rollouts and, before each policy update, augment the rollout buffer with
    imagined segments, from states chosen by the advantage of the current critic.

    AGDPPO installs this callback by itself. It also works with other on-policy algorithms of SB3 and sb3-contrib,
    such as A2C and TRPO, if they are created with ``rollout_buffer_class=AugmentedRolloutBuffer``.

    Paper: https://arxiv.org/abs/2604.09035

    :param guidance: Objective of guided segments: ``"sag"`` or ``"eag"`` (Sigmoid or Exponential Advantage Guidance),
        ``"reward"``, ``"none"``, or a :class:`Guide` of your own
    :param guidance_scale: Strength of the guidance, per standard deviation of the advantage: segments are reweighted by
        ``exp(guidance_scale * objective)``. It is multiplied by the explained variance of the critic. It can be a
        function of the remaining progress (from 1 to 0)
    :param n_candidates: Candidate segments for each real start state. With more than 1, the guide draws one of them, with a
        probability that grows with its objective. In training, a second segment is imagined without guidance from a random
        state along it, and only that one is learned from. With 1, the guide moves the imagined states along the gradient of
        its objective, and these segments are learned from, as in the paper
    :param horizon: Number of transitions of an imagined segment, best 1, 2 or a multiple of 4, see
        :class:`DiffusionWorldModel`
    :param synthetic_ratio: Imagined transitions per real one in each update. It can be a function of the remaining
        progress. With 0, the world model is not trained either
    :param real_data_ratio: Share of the real transitions in each epoch, at least: where there are fewer, they are repeated.
        What the world model does not predict, such as a rare fall, is in the real ones only
    :param min_advantage_correlation: Imagination pauses while the advantages along imagined and along real segments with the
        same actions correlate less than this, in the mean over the newest 20 rollouts: the policy learns from the real
        transitions alone then. With -1 it never pauses
    :param n_denoising_steps: Number of calls of the denoiser per segment. With few, samples are close to the mean of the
        next-state distribution: use more in stochastic environments
    :param sampler: ``"flow"`` (flow matching), ``"ddim"`` or ``"ddpm"``
    :param world_model_gradient_steps: Updates of the world model per rollout (five times as many for the first)
    :param world_model_batch_size: Segments per update of the world model
    :param world_model_learning_rate: Learning rate of the world model. It can be a function of the remaining progress
    :param world_model_warmup: Real transitions before the world model is first fitted and used
    :param buffer_size: Rows for the real transitions that the world model is trained on, one for each and
        one for the last state of each episode; the oldest are overwritten
    :param world_model_kwargs: Further arguments of :class:`DiffusionWorldModel` (``network``,
        ``network_kwargs``, ``ema_decay``)
    :param termination_fn: The true rule of termination where it is known, in place of the learned one. It gets numpy
        arrays ``(observations, actions, next_observations)`` in raw units with one row per transition and returns
        one boolean per row
    :param progress_bar: Show a progress bar while the world model is fitted for the first time
    :param verbose: Verbosity level: 0 for no output, 1 to say when the world model is used for the first time
    :raises ValueError: If an argument is invalid
    """

    def __init__(
        self,
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
        progress_bar: bool = False,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.guide = make_guide(guidance)
        self.guidance_scale = make_schedule("guidance_scale", guidance_scale)
        self.synthetic_ratio = make_schedule("synthetic_ratio", synthetic_ratio)
        self.world_model_learning_rate = make_schedule("world_model_learning_rate", world_model_learning_rate, positive=True)
        check_integer("n_candidates", n_candidates, 1)
        check_integer("world_model_gradient_steps", world_model_gradient_steps, 1)
        check_integer("world_model_batch_size", world_model_batch_size, 1)
        check_integer("world_model_warmup", world_model_warmup, 0)
        check_number("real_data_ratio", real_data_ratio, 0, below=1)
        check_number("min_advantage_correlation", min_advantage_correlation, -1, below=1)
        self.n_candidates = n_candidates
        self.real_data_ratio = real_data_ratio
        self.min_advantage_correlation = min_advantage_correlation
        self.world_model_gradient_steps = world_model_gradient_steps
        self.world_model_batch_size = world_model_batch_size
        self.world_model_warmup = world_model_warmup
        unknown = set(world_model_kwargs or {}) - WORLD_MODEL_KWARGS
        if unknown:
            raise ValueError(f"`world_model_kwargs` may hold {sorted(WORLD_MODEL_KWARGS)}, not {sorted(unknown)}")
        # What the world model and the store are built with, and cannot change later
        self.fixed_settings = {
            "buffer_size": buffer_size,
            "horizon": horizon,
            "n_denoising_steps": n_denoising_steps,
            "sampler": sampler,
            "termination_fn": termination_fn,
            **(world_model_kwargs or {}),
        }
        # The world model checks its own arguments: let it do so now rather than in the middle of training
        check_arguments(self.fixed_settings)
        # A window and the state after it must fit into the ring
        check_integer("buffer_size", buffer_size, horizon + 2)
        self.progress_bar = progress_bar
        self.imagination: Imagination | None = None
        self._seconds = {"fit": 0.0, "imagine": 0.0}
        self._iteration_start = time.perf_counter()
        self._warned_of: set[str] = set()
        # Stays true where training ends with an exception
        self._is_training = False

    @property
    def _buffer(self) -> AugmentedRolloutBuffer:
        """The algorithm's rollout buffer."""
        assert isinstance(self.model, OnPolicyAlgorithm) and isinstance(self.model.rollout_buffer, AugmentedRolloutBuffer)
        return self.model.rollout_buffer

    @property
    def world_model(self) -> DiffusionWorldModel:
        """The world model, there as soon as training begins."""
        assert self.imagination is not None, "The world model is built when training begins"
        return self.imagination.world_model

    def build(self, model: OnPolicyAlgorithm, state: ImaginationState | None = None) -> Imagination:
        """
        Build the world model and the store of transitions for an algorithm.

        :param model: The algorithm
        :param state: State of an earlier run to go on from
        :return: What the callback works with from now on
        :raises ValueError: If the algorithm or its spaces are not supported
        """
        n_rows, n_needed = self.fixed_settings["buffer_size"], self.fixed_settings["horizon"] + 2
        if n_rows // model.n_envs < n_needed:
            raise ValueError(
                f"`buffer_size` {n_rows} is too small: each of the {model.n_envs} environments needs room for "
                f"`horizon` + 2 = {n_needed} transitions"
            )
        self.imagination = Imagination(model, self.fixed_settings, state)
        return self.imagination

    def go_on_with(self, imagination: Imagination) -> None:
        """
        :param imagination: World model and data to work with, built by an earlier callback
        :raises ValueError: If it was built with other settings
        """
        for name in self.fixed_settings | imagination.settings:
            before, now = imagination.settings.get(name), self.fixed_settings.get(name)
            if before != now:
                raise ValueError(
                    f"`{name}` was {before} when the world model was built, and cannot be {now} now. To change it, make a new "
                    "model, or save this one and give the new setting to `AGDPPO.load`"
                )
        self.imagination = imagination

    def follow(self, other: "GuidanceCallback") -> None:
        """
        :param other: A callback whose settings count from now on
        :raises ValueError: If the world model was built with others
        """
        assert self.imagination is not None
        other.go_on_with(self.imagination)
        for name in CHANGEABLE:
            setattr(self, name, getattr(other, name))

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
        if self.imagination is None:
            self.build(self.model)
        assert self.imagination is not None
        if self.imagination.model is not self.model:
            self.imagination.attach(self.model)
        self._probe = GuidanceProbe(self.imagination)

    def _on_training_start(self) -> None:
        imagination, model = self.imagination, self.model
        assert imagination is not None
        check_sees_each_step(self)
        self._iteration_start = time.perf_counter()
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        # `learn` has reset the environments, or a checkpoint is about to put them back
        has_begun = bool(np.all(model._last_episode_starts)) and not imagination.recorder.has_seen(model._last_obs)
        is_resumed = getattr(model, "run_state", None) is not None
        if self._is_training or not (has_begun or is_resumed or imagination.recorder.knows_environments()):
            # The last training was interrupted, perhaps in the middle of a step that nobody took note of, or others have
            # moved the environments since: SB3's last observations may be of another state than they are in
            env = self.training_env
            discard_stale_replies(env)
            model._last_obs = env.reset()  # type: ignore[assignment]
            model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
            has_begun = True
        self._is_training = True
        if has_begun:
            imagination.recorder.begin_episodes()

    def _on_training_end(self) -> None:
        self._is_training = False

    def _on_rollout_start(self) -> None:
        assert self.imagination is not None
        self.imagination.start_rollout()

    def _on_step(self) -> bool:
        assert self.imagination is not None
        self.imagination.recorder.record(self.locals)
        if self.guide is not None:
            self._probe.record()
        return True

    def _on_rollout_end(self) -> None:
        imagination = self.imagination
        assert imagination is not None
        imagination.finish_rollout(self._buffer)
        # Before it is trained on them
        if self._n_rows > 0 and self.world_model.is_trained:
            self._test(imagination)
        if self._make_usable(imagination):
            imagination.bound_values(self._buffer, self.locals["values"], self.locals["dones"])
            with self._timed("imagine"):
                scale = self.guidance_scale(self._progress_remaining)
                gains = self._probe.measure(self.guide, scale, self.n_candidates)
            self._record(gains)
            self._augment(imagination, 0)
        self._log(imagination, self._buffer)

    @property
    def n_rounds(self) -> int:
        """Number of rounds that the algorithm updates the policy in after each rollout."""
        return 1

    @property
    def _progress_remaining(self) -> float:
        """The remaining progress, from 1 to 0: SB3 updates its own figure only after the end of the rollout."""
        return max(0.0, 1.0 - self.num_timesteps / self.model._total_timesteps)

    @property
    def _n_rows(self) -> int:
        """Number of imagined transitions of a round: none also where a schedule comes close to 0 without getting there."""
        n_real = self._buffer.buffer_size * self._buffer.n_envs
        return round(self.synthetic_ratio(self._progress_remaining) * n_real / self.n_rounds)

    def begin_round(self, number: int) -> bool:
        """
        Train the world model and put newly imagined transitions into the rollout buffer, in place of those of the round
        before. Each round has its own part of the real ones.

        :param number: Number of a round after the first, which is 0 and begins with the end of the rollout
        :return: Whether there are imagined transitions
        """
        assert self.imagination is not None
        if not self._make_usable(self.imagination):
            return False
        self._augment(self.imagination, number)
        return self._buffer.n_imagined > 0

    def _make_usable(self, imagination: Imagination) -> bool:
        """
        Train the world model, if that is due.

        :param imagination: World model and data
        :return: Whether transitions are to be imagined with it. Otherwise, the update has to do with the real ones
        """
        if self._n_rows == 0:
            return False
        # A model loaded without its transitions imagines at once, but must not forget on a handful of new ones
        usable = self.world_model.is_trained
        if imagination.replay_buffer.holds(self.world_model_warmup):
            usable = self._fit(imagination, self._progress_remaining)
        return usable and self._is_reliable(imagination)

    def _augment(self, imagination: Imagination, number: int) -> None:
        """
        Put imagined transitions into the rollout buffer.

        :param imagination: World model and data
        :param number: Number of the round, from 0
        """
        # Up to rounding errors, the lowest number that is enough
        ratio = self.synthetic_ratio(self._progress_remaining)
        n_repeats = max(1, math.ceil(ratio * self.real_data_ratio / (1 - self.real_data_ratio) - 1e-9))
        with self._timed("imagine"):
            scale = self.guidance_scale(self._progress_remaining)
            rows, masked = imagination.imagine_rows(self.guide, scale, self.n_candidates, self._n_rows)
        self._buffer.augment(rows, imagination.state.rng, n_repeats, number, self.n_rounds)
        self._record({"masked_share": masked})
        if self.n_candidates == 1:
            self._record({"guidance_norm": self.world_model.guidance_norm})

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
        with self._timed("imagine"):
            errors = imagination.test()
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
        :return: Whether imagination has had something to do with reality lately, or was not tested often enough to tell
        """
        correlations = imagination.state.correlations
        if len(correlations) < N_CORRELATIONS or np.mean(correlations) >= self.min_advantage_correlation:
            return True
        self._warn_once(
            "correlation",
            f"Imagination pauses: in the last {N_CORRELATIONS} rollouts, the correlation of advantages along imagined and "
            f"real segments was {np.mean(correlations):.2f}, below `min_advantage_correlation`. Until it is higher, the "
            "policy learns from real transitions alone, as with PPO. A shorter `horizon` or more "
            "`world_model_gradient_steps` may help; `synthetic_ratio=0` saves the time for the world model.",
        )
        return False

    def _warn_once(self, kind: str, message: str) -> None:
        """
        :param kind: What the warning is about
        :param message: The warning, shown if it is the first of its kind
        """
        if kind not in self._warned_of:
            warnings.warn(message, stacklevel=2)
        self._warned_of.add(kind)

    def _fit(self, imagination: Imagination, progress_remaining: float) -> bool:
        """
        Train the world model on all stored transitions.

        :param imagination: World model and data
        :param progress_remaining: Remaining progress, from 1 to 0
        :return: Whether it worked and left a model that knows anything: if not, this rollout has to do with real data only
        """
        first = not self.world_model.is_trained
        gradient_steps = self.world_model_gradient_steps * (WARMUP_FITS if first else 1)
        with (
            self._timed("fit"),
            tqdm(desc="World model warm-up", total=gradient_steps, disable=not (first and self.progress_bar)) as bar,
        ):
            try:
                losses = imagination.fit(
                    gradient_steps,
                    self.world_model_batch_size,
                    self.world_model_learning_rate(progress_remaining),
                    bar.update,
                )
            except FloatingPointError as error:
                self._warn_once("divergence", f"{error}. Its last good weights are restored. {AFTER_DIVERGENCE}")
                return False
        loss = losses["denoising_loss"]
        self.logger.record("agd/world_model_loss", loss)
        self.logger.record("agd/termination_loss", losses["termination_loss"])
        diverged = loss > MAX_LOSS
        if diverged:
            self._warn_once("loss", f"The world model has diverged: its loss is {loss:.3g}. {AFTER_DIVERGENCE}")
        elif first and self.verbose >= 1:
            print(f"Imagination begins after {self.num_timesteps} steps")
        return not diverged

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """
        Add the duration of a block to the figure of that name.

        :param name: ``"fit"`` or ``"imagine"``
        """
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def _log(self, imagination: Imagination, buffer: AugmentedRolloutBuffer) -> None:
        """
        :param imagination: World model and data
        :param buffer: The algorithm's rollout buffer
        """
        now = time.perf_counter()
        duration = now - self._iteration_start
        self._iteration_start = now
        self.logger.record("agd/n_imagined", buffer.n_imagined)
        self.logger.record("agd/real_advantage_mean", float(buffer.advantages.mean()))
        if buffer.imagined is not None and buffer.n_imagined > 0:
            self.logger.record("agd/imagined_advantage_mean", buffer.imagined.advantages.mean().item())
        self.logger.record("agd/critic_explained_variance", imagination.state.critic_explained_variance)
        for name, seconds in self._seconds.items():
            self.logger.record(f"agd/{name}_time_share", seconds / duration)
        self._seconds = dict.fromkeys(self._seconds, 0.0)

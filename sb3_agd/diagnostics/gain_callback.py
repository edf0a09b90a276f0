"""Measurement of the gain of guidance during training."""

import warnings
from collections.abc import Callable

import gymnasium as gym

from sb3_agd.agdppo import AGDPPO
from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.evaluator_callback import EvaluatorCallback
from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.world_model.validation import check_integer

NOT_RESTORABLE = (
    "the environment cannot be restored to earlier states: after the same actions, it is in other states than before. Either "
    "not all of its state is in its attributes, or it draws from global random generators. The true gain is unknown"
)


class GuidanceGainCallback(EvaluatorCallback):
    """
    Log by how much guidance raises the advantage of segments: ``agd/claimed_gain`` as the world model imagines the segments,
    ``agd/true_gain`` as they are after the same actions in a real environment. Both are judged by the present critic, in
    standard deviations of the one-step advantage, before the policy update. Where ``agd/true_gain`` is much lower, guidance
    exploits errors of the world model. ``agd/guided_error`` and ``agd/unguided_error`` say how far imagined states are from
    those of the real environment after the same actions, with and without guidance: root mean squares in standard deviations
    of the data. ``agd/guidance_distance`` is how far guidance has moved these segments (``guidance_mode="gradient"``).

    Training is the same bit for bit with and without this callback. Each measurement takes about
    ``n_starts * (25 + 9 * horizon)`` steps of the environment.

    :param make_env: Makes the environment to measure in: like those of training, with all of their wrappers except for
        ``VecNormalize``. It must share nothing with them. It is made when training begins and closed when training ends
    :param every_n_rollouts: Measure in every so many rollouts, if there is guidance and the world model was trained
    :param n_starts: Number of start states of segments, taken from episodes of the present policy
    :param verbose: Verbosity level: 0 for no output
    :raises ValueError: If an argument is invalid, and when training begins, if the algorithm is not AGDPPO, or the environment
        has other spaces or cannot be restored to earlier states
    """

    def __init__(self, make_env: Callable[[], gym.Env], every_n_rollouts: int = 10, n_starts: int = 8, verbose: int = 0):
        super().__init__(verbose)
        check_integer("every_n_rollouts", every_n_rollouts, 1)
        check_integer("n_starts", n_starts, 1)
        self.make_env = make_env
        self.every_n_rollouts = every_n_rollouts
        self.n_starts = n_starts

    def _make_evaluator(self, model: AGDPPO) -> Evaluator:
        # That of a training which ended with an exception
        self._on_training_end()
        evaluator = Evaluator(model, self.make_env, model.num_timesteps)
        if evaluator.collect_start_states(self.n_starts).snapshots is None:
            evaluator.env.close()
            raise ValueError(f"`make_env` of GuidanceGainCallback: {NOT_RESTORABLE}")
        return evaluator

    def _is_due(self, n_steps: int, rollout_size: int) -> bool:
        return n_steps // rollout_size % self.every_n_rollouts == 0

    def _measure(self, evaluator: Evaluator) -> None:
        model = evaluator.model
        # As in this rollout: SB3 updates its own figure later
        progress_remaining = max(0.0, 1.0 - model.num_timesteps / model._total_timesteps)
        guidance = model.imagination.effective_guidance(model.settings.guidance_at(progress_remaining))
        if not (guidance.selects or guidance.moves):
            return
        start_states = evaluator.collect_start_states(self.n_starts)
        guided = evaluator.evaluate(start_states, guidance)
        distance = model.world_model.guidance_norm.item()
        unguided = evaluator.evaluate(start_states, NO_GUIDANCE)
        self.logger.record("agd/claimed_gain", (guided.claimed.mean() - unguided.claimed.mean()).item())
        self.logger.record("agd/guidance_distance", distance)
        if guided.replayed is None or unguided.replayed is None:
            warnings.warn(f"GuidanceGainCallback: {NOT_RESTORABLE}", stacklevel=2)
            return
        self.logger.record("agd/true_gain", (guided.replayed.mean() - unguided.replayed.mean()).item())
        for name, outcome in (("guided", guided), ("unguided", unguided)):
            assert outcome.real is not None
            errors = segment_errors(model.world_model, outcome.imagined, outcome.real)["states"]
            self.logger.record(f"agd/{name}_error", errors.square().nanmean().sqrt().item())

    def _on_training_end(self) -> None:
        if self.evaluator is not None:
            self.evaluator.env.close()
            self.evaluator = None

"""Figures of imagined and real trajectories during training."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    Figure,
    HumanOutputFormat,
    JSONOutputFormat,
    TensorBoardOutputFormat,
)

from sb3_agd.agdppo import AGDPPO
from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.evaluator_callback import EvaluatorCallback
from sb3_agd.diagnostics.figures import plot_dimensions, plot_errors
from sb3_agd.diagnostics.poses import obstacle_to_draw
from sb3_agd.diagnostics.report import UNGUIDED, errors_per_step
from sb3_agd.diagnostics.video import animation, film
from sb3_agd.experience.vec_envs import innermost
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.world_model.validation import check_integer

# Outputs that cannot hold a figure
TEXT_OUTPUTS = (HumanOutputFormat, JSONOutputFormat, CSVOutputFormat)
# Segments of a film, which should not make the files of TensorBoard large
N_FILMED = 3


class ImaginationCallback(EvaluatorCallback):
    """
    Compare what the present policy does in imagination and in a real environment, and write the figures to TensorBoard:
    ``agd/errors`` and ``agd/dimensions`` of :func:`imagination_report`, without guidance, and on request ``agd/video``. W&B
    reads TensorBoard's files (``wandb.init(sync_tensorboard=True)``). Nothing is written before the world model is trained.

    Training is the same bit for bit with and without this callback. Each comparison takes about
    ``n_starts * (25 + 5 * horizon)`` steps of the environment.

    :param eval_env: Environment of its own, like those of training, with all of their wrappers except for ``VecNormalize``.
        It must share nothing with them
    :param log_freq: Compare at the end of each rollout that completes another so many steps. Figures are written with SB3's
        next log (``log_interval`` of ``learn``)
    :param n_starts: Number of start states of segments, taken from episodes of the present policy
    :param video: Whether to film, real motion left and imagined motion right. Only MuJoCo tasks whose pose can be computed
        from the observation, made with ``render_mode="rgb_array"``
    :param verbose: Verbosity level: 0 for no output
    :raises ValueError: If an argument is invalid, and when training begins, if the algorithm is not AGDPPO or logs to text
        only, or the environment does not fit
    """

    def __init__(self, eval_env: gym.Env, log_freq: int = 10_000, n_starts: int = 8, video: bool = False, verbose: int = 0):
        super().__init__(verbose)
        if not isinstance(eval_env, gym.Env):
            raise ValueError(f"`eval_env` must be a gymnasium environment, not {type(eval_env).__name__}")
        check_integer("log_freq", log_freq, 1)
        check_integer("n_starts", n_starts, 2)
        self.eval_env = eval_env
        self.log_freq = log_freq
        self.n_starts = n_starts
        self.video = video

    def _make_evaluator(self, model: AGDPPO) -> Evaluator:
        if all(isinstance(output, TEXT_OUTPUTS) for output in self.logger.output_formats):
            raise ValueError("ImaginationCallback has nowhere to write to: give AGDPPO `tensorboard_log`")
        in_training = getattr(innermost(self.training_env), "envs", [])
        if any(env.unwrapped is self.eval_env.unwrapped for env in in_training):
            raise ValueError("`eval_env` of ImaginationCallback is the training environment: make another one")
        try:
            evaluator = Evaluator(model, lambda: self.eval_env, model.num_timesteps)
        except ValueError as error:
            raise ValueError(f"`eval_env` of ImaginationCallback: {error}") from error
        obstacle = obstacle_to_draw(self.eval_env) if self.video else None
        if obstacle is not None:
            raise ValueError(f"`video` of ImaginationCallback: {obstacle}")
        return evaluator

    def _is_due(self, n_steps: int, rollout_size: int) -> bool:
        return n_steps // self.log_freq > (n_steps - rollout_size) // self.log_freq

    def _measure(self, evaluator: Evaluator) -> None:
        start_states = evaluator.collect_start_states(self.n_starts)
        errors = errors_per_step(evaluator, start_states, {UNGUIDED: evaluator.evaluate(start_states, NO_GUIDANCE)})
        figures = {
            "errors": plot_errors(errors),
            "dimensions": plot_dimensions(start_states.recorded, evaluator.imagine_spread(start_states)),
        }
        for name, figure in figures.items():
            self.logger.record(f"agd/{name}", Figure(figure, close=True), exclude=("stdout", "log", "json", "csv"))
        if self.video:
            frames = film(evaluator, NO_GUIDANCE, N_FILMED)
            for output in self.logger.output_formats:
                if isinstance(output, TensorBoardOutputFormat):
                    writer: Any = output.writer.file_writer
                    writer.add_summary(animation("agd/video", frames), self.num_timesteps)

"""What guidance does during the trainings of a suite, as a file."""

import csv
from functools import partial
from pathlib import Path

import gymnasium as gym

from benchmarks.evaluation import STOPWATCH
from sb3_agd import GuidanceGainCallback
from sb3_agd.diagnostics.evaluator import Evaluator

# See GuidanceGainCallback
COLUMNS = ("guidance_distance", "guided_error", "unguided_error", "claimed_gain", "true_gain")


class RecordedGain(GuidanceGainCallback):
    """
    :class:`GuidanceGainCallback` that writes a line of a CSV file for each measurement, with the timesteps first. Its time
    is none of the training.

    :param env_id: Name of the task
    :param every_n_rollouts: See there
    :param file: The CSV file, which is overwritten
    :param n_starts: See there
    """

    def __init__(self, env_id: str, every_n_rollouts: int, file: str | Path, n_starts: int = 16):
        super().__init__(partial(gym.make, env_id), every_n_rollouts, n_starts)
        self.file = Path(file)
        with self.file.open("w", newline="") as opened:
            csv.writer(opened).writerow(("timesteps", *COLUMNS))

    def _on_training_start(self) -> None:
        with STOPWATCH.paused():
            super()._on_training_start()

    def _on_rollout_end(self) -> None:
        with STOPWATCH.paused():
            super()._on_rollout_end()

    def _measure(self, evaluator: Evaluator) -> None:
        figures = self.logger.name_to_value
        for name in COLUMNS:
            figures.pop(f"agd/{name}", None)
        super()._measure(evaluator)
        row = [figures.get(f"agd/{name}") for name in COLUMNS]
        # Nothing, if there is no guidance at present
        if any(figure is not None for figure in row):
            rounded = [None if figure is None else f"{figure:.6g}" for figure in row]
            with self.file.open("a", newline="") as opened:
                csv.writer(opened).writerow([self.num_timesteps, *rounded])

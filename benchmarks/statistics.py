"""Estimates with intervals over the seeds and tasks of a suite."""

from dataclasses import dataclass

import numpy as np
from rliable import library as rly
from scipy.stats import trim_mean

from sb3_agd.zoo.plots import of_enough_runs

BOOTSTRAP_REPETITIONS = 2000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Interval:
    """
    An estimate with its 95 % interval.

    :param point: Estimate
    :param low: Lower end
    :param high: Upper end
    """

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        # Few seeds have none
        return f"{self.point:.2f}" + ("" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]")


def bootstrap(scores: np.ndarray | tuple[np.ndarray, np.ndarray], statistic: object) -> tuple[np.ndarray, np.ndarray]:
    """
    :param scores: Scores, shape (seeds, tasks, ...), or a pair of such arrays
    :param statistic: Function of the scores that returns an array
    :return: Estimates, and their 95 % intervals by stratified bootstrap over the seeds of each task, shape (2, ...); NaN
        where there are too few seeds
    """
    # rliable draws from the global stream, whatever generator it is given
    np.random.seed(BOOTSTRAP_SEED)
    points, intervals = rly.get_interval_estimates({"scores": scores}, statistic, reps=BOOTSTRAP_REPETITIONS)
    return np.atleast_1d(points["scores"]), of_enough_runs(intervals, {"scores": scores})["scores"]


def iqm_curve(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param scores: Shape (seeds, tasks, evaluations)
    :return: Interquartile mean over seeds and tasks of each evaluation, and its intervals, shape (2, evaluations)
    """
    return bootstrap(scores, lambda matrix: trim_mean(matrix.reshape(-1, matrix.shape[-1]), 0.25, axis=0))


def improvement(scores: np.ndarray, baseline: np.ndarray) -> Interval:
    """
    :param scores: Final scores, shape (seeds, tasks)
    :param baseline: Those of the baseline, shape (seeds, tasks)
    :return: Probability that a run is better than one of the baseline on the same task, mean over the tasks
    """
    # The mean of the Mann-Whitney statistics of the tasks; a tie counts half
    points, intervals = bootstrap((scores, baseline), lambda x, y: np.array([(1 + np.sign(x[:, None] - y).mean()) / 2]))
    return Interval(points[0], *intervals[:, 0])

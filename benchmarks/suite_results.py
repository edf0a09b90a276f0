"""The finished runs of a suite, read from its files of results."""

from pathlib import Path
from shlex import quote

import numpy as np
import pandas as pd

from benchmarks.suite import Suite
from sb3_agd.zoo.plots import REFERENCE_SCORES


class Results:
    """
    What is finished of a suite.

    :param suite: The suite
    :param folder: Folder of its results
    :raises ValueError: If nothing is finished
    """

    def __init__(self, suite: Suite, folder: Path):
        self.suite = suite
        self.timesteps = np.arange(1, suite.steps // suite.eval_freq + 1) * suite.eval_freq
        self.records: dict[str, list[dict]] = {}
        tables, gains = [], []
        for run in suite.runs():
            record = run.saved(folder)
            if record is None:
                continue
            self.records.setdefault(run.name, []).append(record)
            table = pd.read_csv(folder / f"{run}.csv").iloc[: len(self.timesteps)]
            tables.append(table.assign(variant=run.name, task=run.task, seed=run.seed))
            measured = folder / f"{run}.gains.csv"
            # Without guidance, there is nothing to measure
            if measured.is_file() and not (gain := pd.read_csv(measured)).empty:
                gains.append(gain.assign(variant=run.name, task=run.task, seed=run.seed))
        if not tables:
            raise ValueError(
                f"No run of {suite.name} with the present settings is finished: python -m benchmarks.run {quote(suite.given)}"
            )
        self.evaluations = pd.concat(tables, ignore_index=True)
        self.gains = pd.concat(gains, ignore_index=True) if gains else pd.DataFrame()
        references = {score.env_id: score for score in REFERENCE_SCORES}
        self.normalised = set(suite.tasks) <= set(references)
        low = self.evaluations.task.map(lambda task: references[task].min if self.normalised else 0)
        high = self.evaluations.task.map(lambda task: references[task].max if self.normalised else 1)
        self.evaluations["score"] = (self.evaluations.return_mean - low) / (high - low)

    @property
    def variants(self) -> list[str]:
        """Names of the variants that have runs, in the order of the suite."""
        return [variant for variant in self.suite.variants if variant in self.records]

    def matrix(self, variant: str) -> np.ndarray:
        """
        :param variant: Name of a variant
        :return: Scores of the seeds that are finished on all tasks, shape (seeds, tasks, evaluations)
        """
        table = self.evaluations[self.evaluations.variant == variant].pivot(
            index="seed", columns=["task", "timesteps"], values="score"
        )
        missing = [task for task in self.suite.tasks if task not in table.columns.get_level_values("task")]
        if missing:
            return np.empty((0, len(self.suite.tasks), len(self.timesteps)))
        complete = table[self.suite.tasks].dropna()
        return complete.to_numpy().reshape(len(complete), len(self.suite.tasks), len(self.timesteps))

    def of_task(self, variant: str, task: str) -> pd.DataFrame:
        """
        :param variant: Name of a variant
        :param task: Name of a task
        :return: Evaluations of all finished seeds
        """
        return self.evaluations[(self.evaluations.variant == variant) & (self.evaluations.task == task)]

"""The zoo's experiments, with this package's hyperparameters and without hiding its errors."""

import argparse
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from sqlalchemy.exc import SQLAlchemyError

PACKAGE = Path(__file__).parent.parent
# In the wheel the folder lies inside the package, in a source tree beside it
HYPERPARAMS = next(folder for folder in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams") if folder.is_dir())


def find_config(config: str | None, algo: str, env_id: str) -> str | None:
    """
    :param config: What the user gave as ``-conf``
    :param algo: Name of the algorithm
    :param env_id: Name of the environment
    :return: The user's own choice if there is one, where the bare name of a shipped file is enough; otherwise the
        shipped file for the algorithm if it covers the environment; ``None`` for the zoo's file
    """
    if config is not None:
        shipped = HYPERPARAMS / config
        return str(shipped) if not Path(config).exists() and shipped.is_file() else config
    file = HYPERPARAMS / f"{algo}.yml"
    if not file.is_file():
        return None
    entries = yaml.safe_load(file.read_text())
    return str(file) if env_id in entries or "default" in entries else None


def passed_through_package(traceback: TracebackType | None) -> bool:
    """
    :param traceback: Traceback of an error in training
    :return: Whether code of this package was at work when it was raised. ``AGDPPO.learn``, which all of training runs
        in, does not count
    """
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if Path(code.co_filename).is_relative_to(PACKAGE) and code.co_name not in ("learn", "objective"):
            return True
        traceback = traceback.tb_next
    return False


def prepare_database(url: str) -> None:
    """
    Create the tables of a study. Workers that start at the same moment get into each other's way there, so a few
    attempts are made; an error that stays comes up again when the study is opened.

    :param url: Address of the database
    """
    for _ in range(10):
        try:
            optuna.storages.RDBStorage(url).remove_session()
            return
        except SQLAlchemyError:
            time.sleep(0.3)


class AGDExperimentManager(ExperimentManager):
    """
    ExperimentManager which looks for hyperparameters in this package first, and where a trial of ``-optimize`` that
    fails in this package's code counts as failed, not as pruned. All arguments are the zoo's.

    :param args: Parsed command line
    :param algo: Name of the algorithm
    :param env_id: Name of the environment
    :param config: File of hyperparameters
    """

    def __init__(
        self, args: argparse.Namespace, algo: str, env_id: str, *other_args: Any, config: str | None = None, **kwargs: Any
    ):
        kwargs["config"] = find_config(config, algo, env_id)
        super().__init__(args, algo, env_id, *other_args, **kwargs)
        if self.trial_id == 0 and self.storage and self.study_name:
            # The zoo takes number 0 for no trial at all
            self.custom_hyperparams = {
                **self.load_trial(self.storage, self.study_name, 0),
                **(self.custom_hyperparams or {}),
            }

    def hyperparameters_optimization(self) -> None:
        if self.storage is not None and "://" in self.storage:
            prepare_database(self.storage)
        super().hyperparameters_optimization()

    def objective(self, trial: optuna.Trial) -> float:
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            # The zoo prunes on ValueError and AssertionError, because hyperparameters can make the policy diverge
            error = pruned.__cause__
            if error is not None and passed_through_package(error.__traceback__):
                raise RuntimeError(f"Trial {trial.number} failed in sb3_agd: {error}") from error
            raise

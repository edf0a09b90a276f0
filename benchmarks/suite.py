"""What a suite of benchmark runs consists of, and where its results are."""

import inspect
import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rl_zoo3 import ALGOS

from benchmarks.settings import ENVIRONMENT_KEYS, read_settings, settings_of
from sb3_agd.zoo import register

FOLDER = Path(__file__).parent
SUITES = FOLDER / "suites"
RESULTS = FOLDER / "results"

# Arguments that do not change what is learned, and what the suite decides itself
IRRELEVANT = {"_init_setup_model", "device", "n_timesteps", "seed", "stats_window_size", "tensorboard_log", "verbose"}

register()


@dataclass(frozen=True)
class Variant:
    """
    An algorithm with settings.

    :param algorithm: RL-Zoo's name of the algorithm
    :param n_seeds: Number of runs on each task
    :param first_seed: Their first seed, by default the suite's
    :param settings: What differs from the settings in ``hyperparams/``
    :param config: File in ``hyperparams/``, or ``FILE.yml:ENTRY`` for one of several sets of settings in it; by default the
        file of the algorithm
    """

    algorithm: str
    n_seeds: int
    settings: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    first_seed: int | None = None

    @property
    def source(self) -> str:
        """Where the settings are, as ``-conf`` of the command takes it."""
        return self.config or f"{self.algorithm}.yml"


@dataclass(frozen=True)
class Run:
    """
    One training.

    :param name: Name of the variant
    :param variant: The variant
    :param task: Name of the environment
    :param seed: Seed
    :param suite: The suite that the run belongs to
    """

    name: str
    variant: Variant
    task: str
    seed: int
    suite: "Suite"

    def __str__(self) -> str:
        return f"{self.name}-{self.task}-{self.seed}"

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """All settings as plain data: the algorithm's defaults, then the settings file's, then the variant's."""
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(ALGOS[self.variant.algorithm]).parameters.items()
            if parameter.default is not parameter.empty
        }
        settings = defaults | settings_of(self.variant.source, self.task) | self.variant.settings
        relevant = {name: value for name, value in sorted(settings.items()) if name not in IRRELEVANT}
        # Classes among the defaults have no other form in JSON than their names
        return json.loads(json.dumps(relevant, default=str))

    @property
    def conditions(self) -> dict[str, Any]:
        """What results depend on besides the seed and the code: recorded with them, and compared with the present ones."""
        length = {name: getattr(self.suite, name) for name in ("steps", "eval_freq", "eval_episodes")}
        return {"hyperparameters": self.hyperparameters, **length}

    def saved(self, results: Path) -> dict[str, Any] | None:
        """
        :param results: Folder of the suite's results
        :return: The record of this run, ``None`` if it is not finished or was made with other settings or another
            length, or before the algorithm had all of its present settings
        """
        record, evaluations = results / f"{self}.json", results / f"{self}.csv"
        if not record.is_file() or not evaluations.is_file():
            return None
        content = json.loads(record.read_text())
        same = all(content.get(name) == value for name, value in self.conditions.items())
        return content if same and is_complete(pd.read_csv(evaluations), self.suite) else None


def read_suite(file: Path) -> dict[str, Any]:
    """
    :param file: YAML file of a suite
    :return: Its content, with that of the suite that it is like
    :raises FileNotFoundError: If there is no such suite
    """
    content = yaml.safe_load(file.read_text())
    return {**read_suite(SUITES / f"{content.pop('like')}.yml"), **content} if "like" in content else content


@dataclass(frozen=True)
class Suite:
    """
    A matrix of variants, tasks and seeds.

    :param name: Name of the suite, also of its folder of results
    :param given: What the commands take for it: its name, or its file
    :param steps: Environment steps of each run
    :param eval_freq: Environment steps between evaluations
    :param eval_episodes: Number of deterministic episodes of an evaluation
    :param first_seed: The seeds are this one and those that follow, unless a variant has its own
    :param tasks: Names of the environments
    :param variants: What to compare, by name
    :param device: Device of the training, ``"auto"`` for a GPU if there is one
    :param gain_every: Rollouts between measurements of what guidance does, see :class:`RecordedGain`; 0 for none
    """

    name: str
    given: str
    steps: int
    eval_freq: int
    eval_episodes: int
    first_seed: int
    tasks: list[str]
    variants: dict[str, Variant]
    device: str = "cpu"
    gain_every: int = 0

    @classmethod
    def load(cls, suite: str) -> "Suite":
        """
        :param suite: A YAML file, or the name of one in ``benchmarks/suites``. With ``like``, it only says what is
            different from the suite of that name there
        :return: The suite
        :raises ValueError: If there is no such file, or something in it is unknown
        """
        file = Path(suite) if Path(suite).is_file() else SUITES / f"{suite.removesuffix('.yml')}.yml"
        if not file.is_file():
            known = sorted(path.stem for path in SUITES.glob("*.yml"))
            raise ValueError(f"There is no suite {suite!r}: give a file, or one of {', '.join(known)}")
        try:
            content = read_suite(file)
            variants = {name: Variant(**variant) for name, variant in content.pop("variants").items()}
            loaded = cls(name=file.stem, given=suite, variants=variants, **content)
            has_evaluations = 1 <= loaded.eval_freq <= loaded.steps
        except (TypeError, KeyError, AttributeError, FileNotFoundError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"{file} is not a suite: {error}") from error
        if not has_evaluations:
            steps, eval_freq = loaded.steps, loaded.eval_freq
            raise ValueError(f"{file}: `eval_freq` must be between 1 and {steps}, the number of steps, not {eval_freq}")
        for name, variant in variants.items():
            try:
                tuned = read_settings(variant.source)
                parameters = inspect.signature(ALGOS[variant.algorithm]).parameters
            except (KeyError, FileNotFoundError):
                raise ValueError(f"{file}: variant {name!r} has no settings {variant.source}, or no such algorithm") from None
            missing = set(loaded.tasks) - set(tuned)
            if missing and "default" not in tuned:
                raise ValueError(f"{variant.source} has no settings for {', '.join(sorted(missing))}")
            given = set(variant.settings).union(*(settings_of(variant.source, task) for task in loaded.tasks))
            unknown = given - set(parameters) - set(ENVIRONMENT_KEYS)
            if unknown or not set(variant.settings).isdisjoint(IRRELEVANT):
                names = sorted(unknown | (set(variant.settings) & IRRELEVANT))
                raise ValueError(f"{file}: variant {name!r} has unknown settings {', '.join(names)}")
        return loaded

    def runs(self) -> list[Run]:
        """All runs, ordered so that whatever part of them is finished is balanced: by seed, then task, then variant."""
        seeds = range(max((variant.n_seeds for variant in self.variants.values()), default=0))
        return [
            Run(name, variant, task, (self.first_seed if variant.first_seed is None else variant.first_seed) + seed, self)
            for seed, task, (name, variant) in product(seeds, self.tasks, self.variants.items())
            if seed < variant.n_seeds
        ]


def is_complete(evaluations: pd.DataFrame, suite: Suite) -> bool:
    """
    :param evaluations: Content of a run's CSV file
    :param suite: The suite
    :return: Whether the run got to its end
    """
    return len(evaluations) >= suite.steps // suite.eval_freq

"""
Pytest plugin for the tests of Stable-Baselines3, sb3-contrib and RL-Zoo: puts the algorithm that the environment variable
PEERS_STAND_IN names, AGDPPO or PPO, in the place of PPO, A2C and TRPO (default: they stay), and writes down what these
algorithms do in each test, in the processes that tests start as well. PEERS_LOG names the file for that, PEERS_SELECTION a
file with the tests to run (default: all), PEERS_SEED the seed of the stand-in (default: that of the test),
PEERS_TESTS_OF_LEARNING the beginning of the names of tests that judge what was learned.
"""

import functools
import inspect
import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_agd import AGDPPO

SECONDS_PER_TEST = 300
PLACES = {
    "PPO": (stable_baselines3, stable_baselines3.ppo),
    "A2C": (stable_baselines3, stable_baselines3.a2c),
    "TRPO": (sb3_contrib, sb3_contrib.trpo),
}
STAND_INS: dict[str, type[stable_baselines3.PPO]] = {"AGDPPO": AGDPPO, "PPO": stable_baselines3.PPO}
# In tests that judge what was learned, the world model has its default size, and it must have learned something before it
# teaches
LEARNING: dict[str, Any] = {
    "synthetic_ratio": 1.0,
    "horizon": 4,
    "world_model_warmup": 100,
    "world_model_gradient_steps": 50,
}
# In all others, it is at work from the first rollout on, and quick enough for hundreds of tests
EARLY: dict[str, Any] = LEARNING | {
    "world_model_warmup": 0,
    "world_model_gradient_steps": 10,
    "world_model_batch_size": 32,
    "world_model_kwargs": {"network_kwargs": {"width": 32, "depth": 1}},
}
# Where rollouts are short, as A2C's of 5 steps, it has fewer updates: so many per step, as with AGDPPO's defaults and the
# rollouts of 256 steps that they suit
UPDATES_PER_STEP = 0.2


def current_test() -> str:
    """
    :return: Name of the test that is running, also in a parent process, ``""`` if there is none
    """
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]


def write_down(**event: Any) -> None:
    """
    :param event: What has happened; the test that is running is added
    """
    event.setdefault("test", current_test())
    with open(os.environ["PEERS_LOG"], "a") as file:
        file.write(json.dumps(event) + "\n")


def watch(algorithm: type[OnPolicyAlgorithm], name: str) -> None:
    """
    Write down each time that a model is made or updated.

    :param algorithm: Algorithm to watch
    :param name: Its name in the log
    """
    init, train = algorithm.__init__, algorithm.train

    @functools.wraps(init)
    def watched_init(self: OnPolicyAlgorithm, *args: Any, **kwargs: Any) -> None:
        write_down(event="made", algorithm=name)
        init(self, *args, **kwargs)

    @functools.wraps(train)
    def watched_train(self: OnPolicyAlgorithm) -> None:
        write_down(event="updated", algorithm=name, n_imagined=getattr(self.rollout_buffer, "n_imagined", 0))
        train(self)

    algorithm.__init__ = watched_init  # type: ignore[method-assign]
    algorithm.train = watched_train  # type: ignore[method-assign]


def make_stand_in(algorithm: type[stable_baselines3.PPO], replaced: type[OnPolicyAlgorithm]) -> type[stable_baselines3.PPO]:
    """
    :param algorithm: Algorithm to put in the place of another one
    :param replaced: Algorithm to replace
    :return: The former with the latter's name, which is part of the names of tests, and its defaults
    """
    ours, theirs = (inspect.signature(cls).parameters for cls in (algorithm, replaced))
    empty = inspect.Parameter.empty
    defaults = {name: theirs[name].default for name in ours if name in theirs and theirs[name].default is not empty}

    class StandIn(algorithm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any):
            given = defaults | kwargs
            settings: dict[str, Any] = {}
            if algorithm is AGDPPO:
                learning = current_test().startswith(os.environ["PEERS_TESTS_OF_LEARNING"])
                settings = dict(LEARNING if learning else EARLY)
                for_rollout = max(round(UPDATES_PER_STEP * given["n_steps"]), 1)
                settings["world_model_gradient_steps"] = min(settings["world_model_gradient_steps"], for_rollout)
                # Imagination before each update, also after rollouts of 5 steps
                settings["real_steps_per_update"] = min(given["n_steps"], 256)
            seed = {"seed": int(os.environ["PEERS_SEED"])} if "PEERS_SEED" in os.environ else {}
            super().__init__(*args, **settings | given | seed)

        def learn(self, *args: Any, tb_log_name: str = replaced.__name__, **kwargs: Any) -> Any:
            # Each algorithm logs under its own name
            return super().learn(*args, tb_log_name=tb_log_name, **kwargs)

    StandIn.__name__ = StandIn.__qualname__ = replaced.__name__
    return StandIn


def install() -> None:
    """Watch the algorithms, or the one in their place."""
    th.set_num_threads(1)
    for name, modules in PLACES.items():
        algorithm = getattr(modules[0], name)
        if "PEERS_STAND_IN" in os.environ:
            algorithm = make_stand_in(STAND_INS[os.environ["PEERS_STAND_IN"]], algorithm)
            for module in modules:
                setattr(module, name, algorithm)
        watch(algorithm, name)


def concerns_other_algorithm(item: pytest.Item) -> bool:
    """
    :param item: A test
    :return: Whether one of its parameters is an algorithm that is not replaced
    """
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else []
    algorithms = [value for value in parameters if isinstance(value, type) and issubclass(value, BaseAlgorithm)]
    return any(algorithm.__name__ not in PLACES for algorithm in algorithms)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "PEERS_SELECTION" in os.environ:
        selection = set(json.loads(Path(os.environ["PEERS_SELECTION"]).read_text()))
        left_out = [item for item in items if item.nodeid not in selection]
    else:
        left_out = [item for item in items if concerns_other_algorithm(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{item.nodeid} took more than {SECONDS_PER_TEST} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_PER_TEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else str(report.longrepr or "")
        write_down(event=report.outcome, test=report.nodeid, message=message, seconds=round(report.duration, 1))


install()

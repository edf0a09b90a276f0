"""Measurements beside the suites, at small size, and guidance on a task where the truth is known."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from environments import SMALL

from benchmarks import evaluation, guidance_on_linear_task, imagination_health
from benchmarks.guidance_gain import RecordedGain
from benchmarks.guidance_on_linear_task import LinearTask
from benchmarks.settings import load_settings
from sb3_agd import AGDPPO, GuidanceGainCallback


def test_value_function_of_the_linear_task_is_the_expected_return() -> None:
    task = LinearTask(noise=0.1)
    generator = th.Generator().manual_seed(0)
    n_episodes, length = 20_000, 200
    states = th.tensor([1.0, -0.5]).expand(n_episodes, 2)
    policy = task.policy(n_episodes, length, generator)
    returns = th.zeros(n_episodes)
    for step in range(length):
        actions = policy(states[:, None], slice(step, step + 1))[:, 0]
        returns += task.gamma**step * task.rewards(states, actions)
        shock = th.stack([th.zeros(n_episodes), task.noise * th.randn(n_episodes, generator=generator)], dim=1)
        states = task.expected(states, actions) + shock
    standard_error = returns.std().item() / n_episodes**0.5
    assert returns.mean().item() == pytest.approx(task.values(th.tensor([1.0, -0.5])).item(), abs=4 * standard_error)


def test_particles_choose_better_actions_and_moved_states_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_on_linear_task, "FITS", ((300, 3e-3), (100, 3e-4)))
    monkeypatch.setattr(guidance_on_linear_task, "N_SEGMENTS", 1024)
    rows = list(guidance_on_linear_task.measure(LinearTask(noise=0.0), scales=(1.0,), candidates=(1, 8)))
    by_kind = {(row["guidance"], row["candidates"]): row for row in rows}
    none = by_kind["none", 1]
    for guidance in ("sag", "eag"):
        moved, chosen = by_kind[guidance, 1], by_kind[guidance, 8]
        assert chosen["true"] > none["true"] + 0.05 > moved["true"]
        assert chosen["off"] < 1.1 * none["off"] < moved["off"]


def short_settings(algorithm: str, env_id: str) -> dict[str, Any]:
    """The shipped settings, with an earlier begin of imagination and shorter updates."""
    return load_settings(algorithm, env_id) | {"world_model_warmup": 256, "n_epochs": 1}


def small_settings(algorithm: str, env_id: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Those of a variant, with small networks and updates."""
    small = {"n_epochs": 1, "n_steps": 64, "batch_size": 64, "learning_starts": 64}
    settings = load_settings(algorithm, env_id, changes)
    return {key: small.get(key, value) for key, value in settings.items()} | {"policy_kwargs": {"net_arch": [16, 16]}}


# Sizes that make each measurement a matter of seconds
SMALL_MEASUREMENTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "world_model_error": (["--envs", "Hopper-v5", "--updates", "3"], {"N_TURNS": 2, "TURN_STEPS": 100, "PPO_STEPS": 512}),
    "step_time": (
        ["--turns", "1"],
        {"load_settings": small_settings, "WARM_UP": 128, "OFF_POLICY_STEPS": 4, "ON_POLICY_STEPS": 128},
    ),
    "imagination_health": (["--steps", "768"], {"load_settings": short_settings}),
    "speed": (
        ["--repetitions", "1", "--device", "cpu"],
        {
            "PAPER": {"sampler": "ddpm", "world_model_kwargs": {"network": "mlp", "network_kwargs": {"width": 16}}},
            "REPETITIONS": 1,
            "WARMUP_STEPS": 512,
            "load_settings": short_settings,
            "PAPER_SEGMENTS": 16,
            "SEGMENTS": {"cpu": 16},
            "UPDATES": 2,
            "MATMUL_SIZE": 128,
            "BUFFER_SIZES": (6_000, 10_000),
        },
    ),
}


def figures(results: Any) -> Iterator[float]:
    """All numbers in a JSON file."""
    if isinstance(results, (int, float)):
        yield results
    elif isinstance(results, (dict, list)):
        for part in results.values() if isinstance(results, dict) else results:
            yield from figures(part)


def test_values_are_compared_with_returns_from_the_first_end_of_an_episode_on() -> None:
    before = {"largest_return": 0.0, "largest_real_value": 1.0}
    after = {"largest_return": 2.0, "largest_real_value": 1.0, "largest_imagined_value": 3.0}
    assert imagination_health.largest_ratio([before, after]) == 1.5
    assert imagination_health.largest_ratio([before]) is None


def test_seconds_of_training_are_without_those_of_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def taking(seconds: float) -> Callable[..., Any]:
        def step(*_: Any, **__: Any) -> tuple[list[float], list[int]]:
            clock[0] += seconds
            return [0.0], [1]

        return step

    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(evaluation, "evaluate_policy", taking(100))
    monkeypatch.setattr(GuidanceGainCallback, "_measure", taking(1000))
    monkeypatch.setattr(AGDPPO, "train", taking(1))
    callbacks = [
        evaluation.TimedEvaluation("Pendulum-v1", 0, 32, 1, tmp_path / "evaluations.csv"),
        RecordedGain("Pendulum-v1", 1, tmp_path / "gains.csv", 2),
    ]
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(96, callbacks)
    assert pd.read_csv(tmp_path / "evaluations.csv").wall_seconds.tolist() == [0, 1, 2]
    # In each rollout an evaluation, a measurement and an update
    assert clock[0] == 3 * (100 + 1000 + 1)


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("name", SMALL_MEASUREMENTS)
def test_measurements_run_at_small_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, constants = SMALL_MEASUREMENTS[name]
    module = importlib.import_module(f"benchmarks.{name}")
    for constant, value in constants.items():
        assert hasattr(module, constant)
        monkeypatch.setattr(module, constant, value)
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--output", str(output)])
    module.main()
    assert capsys.readouterr().out
    measured = list(figures(json.loads(output.read_text())))
    assert len(measured) > 5
    assert np.isfinite(measured).all() and min(measured) >= 0

"""The ladder: a simulator in place of the world model that is true to the task, and runs that are comparable and resume."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th

from benchmarks import ladder
from benchmarks.ladder import ARMS, TASKS, Run
from benchmarks.settings import load_settings
from benchmarks.simulator_imagination import SimulatorAGDPPO, SimulatorModel
from sb3_agd.experience.space_codecs import make_codec
from sb3_agd.imagination.value_bounds import UNKNOWN_RANGE
from sb3_agd.world_model import Segments

HORIZON = 4
SMALL = {
    "policy": "MlpPolicy",
    "policy_kwargs": {"net_arch": [8]},
    "n_epochs": 1,
    "n_steps": 64,
    "real_steps_per_update": 64,
    "batch_size": 64,
    "world_model_warmup": 64,
    "world_model_gradient_steps": 1,
}


def make_simulator(task: str) -> SimulatorModel:
    env = gym.make(task).unwrapped
    codecs = make_codec(env.observation_space, "observation"), make_codec(env.action_space, "action")
    return SimulatorModel(env, *codecs, HORIZON)


def play(task: str, simulator: SimulatorModel, n_steps: int) -> Segments[np.ndarray]:
    """Random steps of the real task, as one segment; the states before them are kept. Episodes follow one another."""
    env: Any = gym.make(task).unwrapped
    env.action_space.seed(0)
    encode = simulator.simulator.observation_codec.encode
    observations, actions, rewards, terminations = [encode(env.reset(seed=0)[0][None])[0]], [], [], []
    for _ in range(n_steps):
        simulator.keep(observations[-1], env.data)
        actions.append(env.action_space.sample().astype(np.float32))
        observation, reward, terminated, _, _ = env.step(actions[-1])
        observations.append(encode(observation[None])[0])
        rewards.append(np.float32(reward))
        terminations.append(terminated)
        if terminated:
            break
    arrays = (observations, actions, rewards, terminations, np.ones(len(rewards), dtype=bool))
    return Segments(*map(np.array, arrays))


@pytest.mark.parametrize("task", TASKS)
def test_segments_from_an_observation_are_what_really_followed(task: str) -> None:
    simulator = make_simulator(task)
    played = play(task, simulator, 60)
    n_steps = len(played.rewards)
    # Not in the order of time, and up to the end
    firsts = np.random.default_rng(0).permutation(n_steps - HORIZON + 1)
    steps = firsts[:, None] + np.arange(HORIZON)
    imagined = simulator.predict(th.from_numpy(played.observations[firsts]), th.from_numpy(played.actions[steps]))
    assert imagined.mask.all()
    np.testing.assert_array_equal(imagined.observations[:, 1:], played.observations[steps + 1])
    np.testing.assert_array_equal(imagined.rewards, played.rewards[steps])
    np.testing.assert_array_equal(imagined.terminations, played.terminations[steps])
    for observation in simulator.imagined_states.keys() & simulator.real_states.keys():
        both = simulator.imagined_states[observation], simulator.real_states[observation]
        # In double precision, and with what observations leave out
        assert all(map(np.array_equal, *both))
    if task in ("Hopper-v5", "Walker2d-v5"):
        assert imagined.terminations.any()


def test_what_the_observation_leaves_out_is_restored() -> None:
    simulator = make_simulator("Walker2d-v5")
    played = play("Walker2d-v5", simulator, 30)
    # Velocities are clipped in these observations
    clipped = np.flatnonzero((np.abs(played.observations[:-1]) >= 10).any(axis=1))[:1]
    imagined = simulator.predict(
        th.from_numpy(played.observations[clipped]), th.from_numpy(played.actions[clipped][:, None].repeat(HORIZON, 1))
    )
    assert len(clipped) == 1
    np.testing.assert_array_equal(imagined.observations[:, 1], played.observations[clipped + 1])


def test_nothing_follows_a_termination() -> None:
    simulator = make_simulator("Hopper-v5")
    played = play("Hopper-v5", simulator, 200)
    assert played.terminations[-1]
    start = played.observations[-3:-2]
    imagined = simulator.predict(th.from_numpy(start), th.from_numpy(played.actions[[-2, -1, -1, -1]][None]))
    assert imagined.mask.tolist() == [[True, True, False, False]]
    np.testing.assert_array_equal(imagined.observations[0, 2:], played.observations[[-1, -1, -1]])


def test_segments_may_start_along_those_of_the_call_before() -> None:
    simulator = make_simulator("HalfCheetah-v5")
    played = play("HalfCheetah-v5", simulator, 9)
    simulator.real_states = {played.observations[0].tobytes(): simulator.real_states[played.observations[0].tobytes()]}
    first = simulator.predict(th.from_numpy(played.observations[:1]), th.from_numpy(played.actions[None, :4]))
    second = simulator.predict(first.observations[:, 3], th.from_numpy(played.actions[None, 3:7]))
    np.testing.assert_array_equal(second.observations[0], played.observations[3:8])
    with pytest.raises(KeyError):
        simulator.predict(first.observations[:, 1], th.from_numpy(played.actions[None, 1:5]))


def make_agent(task: str, **settings: Any) -> SimulatorAGDPPO:
    return SimulatorAGDPPO(env=gym.make(task), seed=0, device="cpu", **{**SMALL, "synthetic_ratio": 2, **settings})


def with_constant_value(agent: SimulatorAGDPPO, value: float) -> None:
    with th.no_grad():
        agent.policy.value_net.weight.zero_()
        agent.policy.value_net.bias.fill_(value)


@pytest.mark.parametrize("settings", [{}, {"n_streams": 8, "guidance": "none"}])
def test_policy_learns_from_the_simulator_and_the_world_model_is_not_trained(settings: dict[str, Any]) -> None:
    agent = make_agent("HalfCheetah-v5", **settings)
    weights = th.cat([weight.flatten() for weight in agent.world_model.networks.parameters()])
    agent.learn(128)
    assert agent.rollout_buffer.n_imagined == 128
    assert th.equal(weights, th.cat([weight.flatten() for weight in agent.world_model.networks.parameters()]))


@pytest.mark.parametrize("n_streams", [0, 8])
def test_values_are_bounded_if_asked_for(n_streams: int) -> None:
    free = make_agent("Reacher-v5", n_streams=n_streams, bounded=False).learn(64)
    assert free.imagination.state.value_range == UNKNOWN_RANGE
    bounded = make_agent("Reacher-v5", n_streams=n_streams)
    with_constant_value(bounded, 1000.0)
    bounded.learn(64)
    low, high = bounded.imagination.state.value_range
    returns = bounded.rollout_buffer.imagined.returns
    assert -np.inf < low <= returns.min() and returns.max() <= high < np.inf


def test_streams_go_on_where_they_stopped_and_are_reset_at_the_end_of_an_episode() -> None:
    agent = make_agent("Reacher-v5", n_streams=4, guidance="none", bounded=False, gae_lambda=0.0)
    imagination, value = agent.imagination, 1000.0
    with_constant_value(agent, value)
    elapsed = []
    for _ in range(3):
        before = imagination._vectors
        rows, masked = imagination.imagine_rows(agent.settings.guidance_at(1.0), 4 * 20)
        assert len(rows.returns) == 4 * 20 and masked == 0
        learned_from = {tuple(observation) for observation in rows.observations.tolist()}
        assert {tuple(observation) for observation in before.tolist()} <= learned_from and len(learned_from) == 4 * 20
        elapsed.append(imagination.streams.get_attr("_elapsed_steps"))
        # A time limit is no termination: the value after it counts
        assert rows.returns.min() > 0.9 * agent.gamma * value
    # Episodes have 50 steps
    assert elapsed == [[20] * 4, [40] * 4, [10] * 4]


def test_nothing_is_earned_after_a_termination_in_a_stream() -> None:
    agent = make_agent("Hopper-v5", n_streams=8, guidance="none", bounded=False, gae_lambda=0.0)
    with_constant_value(agent, 1000.0)
    rows, _ = agent.imagination.imagine_rows(agent.settings.guidance_at(1.0), 8 * 64)
    n_ended = int((rows.returns < 500).sum())
    # Episodes of an untrained policy have a few dozen steps
    assert 8 < n_ended < 64


@pytest.fixture
def small_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "load_settings", lambda *names: load_settings(*names) | SMALL)
    monkeypatch.setattr(ladder, "RATIO", 2)
    arms = {name: ladder.Arm(arm.algorithm, min(arm.ratio, 2), arm.settings) for name, arm in ARMS.items()}
    monkeypatch.setattr(ladder, "ARMS", arms)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ladder", *map(str, arguments)])
    ladder.main()


@pytest.mark.usefixtures("small_settings")
def test_arms_learn_from_equal_numbers_of_transitions_and_finished_runs_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def here(runs: list[Run], jobs: int) -> Iterator[tuple[Run, float]]:
        for run in runs:
            trained.append(run.evaluations.stem)
            yield run, ladder.train(run)

    monkeypatch.setattr(ladder, "outcomes", here)
    length = ("--steps", 256, "--eval-freq", 128, "--eval-episodes", 1, "--results", tmp_path)
    arguments = ("--tasks", "Reacher-v5", "--seeds", 0, *length, "--arms")
    call(monkeypatch, *arguments, "P", "L")
    # Interrupted before the end of a run
    (tmp_path / "P-Reacher-v5-256-0.json").unlink()
    call(monkeypatch, *arguments, *ARMS)
    assert trained == [f"{arm}-Reacher-v5-256-0" for arm in ("P", "L", *(arm for arm in ARMS if arm != "L"))]
    assert pd.read_csv(tmp_path / "P-Reacher-v5-256-0.csv").timesteps.tolist() == [256, 512]
    assert pd.read_csv(tmp_path / "O-Reacher-v5-256-0.csv").timesteps.tolist() == [128, 256]
    report = (tmp_path / "report.md").read_text()
    assert report in capsys.readouterr().out
    assert "| real steps | transitions learned from | P | O |" in report and "| P minus O | O minus L |" in report
    assert "| 128 | 256 |" in report and "| 256 | 512 |" in report
    # A run of another length is another run, beside the first
    call(monkeypatch, *arguments, "P", "--steps", 128)
    assert trained[-1] == "P-Reacher-v5-128-0"
    assert {"## Reacher-v5, 128 steps", "## Reacher-v5, 256 steps"} <= {*(tmp_path / "report.md").read_text().splitlines()}


def test_only_runs_that_are_finished_with_the_present_settings_are_reported(tmp_path: Path) -> None:
    runs = [Run("P", "Reacher-v5", seed, 256, 128, 1, tmp_path) for seed in range(4)]
    for run in runs:
        run.evaluations.write_text(f"timesteps,return_mean\n{16 * run.steps},{run.seed}\n")
        run.evaluations.with_suffix(".json").write_text(json.dumps(run.conditions))
    runs[1].evaluations.with_suffix(".json").write_text(json.dumps(runs[1].conditions | {"settings": {"gamma": 0.5}}))
    runs[2].evaluations.unlink()
    # As files were named before
    runs[3].evaluations.with_suffix(".json").rename(tmp_path / "P-Reacher-v5-3.json")
    assert [run.is_finished() for run in runs] == [True, False, False, False]
    (row,) = ladder.load(tmp_path).to_dict("records")
    assert row == {
        "timesteps": 4096,
        "return_mean": 0,
        "real_steps": 256,
        "task": "Reacher-v5",
        "steps": 256,
        "arm": "P",
        "seed": 0,
    }


def test_report_shows_the_differences_of_the_means() -> None:
    returns = {"P": [10.0, 20.0], "O": [4.0, 8.0], "L": [1.0]}
    rows = [
        {"task": "Ant-v5", "steps": 5_000, "arm": arm, "seed": seed, "real_steps": 5_000, "return_mean": value}
        for arm, values in returns.items()
        for seed, value in enumerate(values)
    ]
    (line,) = (line for line in ladder.report(pd.DataFrame(rows)).splitlines() if line.startswith("| 5,000"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["5,000", "80,000", "15 ± 7.07 (2)", "6 ± 2.83 (2)", "1 (1)", "9", "5"]


def test_a_failed_run_does_not_end_the_others(tmp_path: Path) -> None:
    length = (2, 1, 1)
    absent = Run("P", "Reacher-v5", 0, *length, tmp_path / "absent")
    present = Run("P", "Reacher-v5", 0, *length, tmp_path)
    results = dict(ladder.outcomes([absent, present], 1))
    assert isinstance(results[absent], FileNotFoundError)
    assert isinstance(results[present], float) and present.is_finished()

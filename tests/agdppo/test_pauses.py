"""Imagination pauses while its advantages do not correlate with real ones."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from logs import ImaginedRows, KeptLog
from stable_baselines3 import A2C
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, DiffusionWorldModel, GuidanceCallback
from sb3_agd.imagination import Settings

# Without the arguments of PPO
SETTINGS = {name: SMALL[name] for name in SMALL if name in Settings.__dataclass_fields__}


def unpredictable_env() -> ToyEnv:
    """A task whose rewards follow from a number of the step that no observation shows."""
    return ToyEnv(reward=lambda step: float(np.sin(step**2)))


def predictable_env() -> ToyEnv:
    """A task of the same spaces whose observations are the number of the step in the episode, from which rewards follow."""
    return ToyEnv(observe=lambda step: np.full(3, step / 20, dtype=np.float32), reward=lambda step: float(step % 20 > 10))


def learn_and_watch(model: AGDPPO, n_rollouts: int) -> tuple[list[bool], list[str]]:
    """
    :return: Whether rows were imagined for the update after each rollout, and all warnings
    """
    rows = ImaginedRows()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(n_rollouts * SMALL["n_steps"], rows)
    return [count > 0 for count in rows.counts], [str(warning.message) for warning in caught]


@dataclass(frozen=True)
class Paused:
    """An agent whose imagination has paused in the last rollout, as a file, and what was seen in its training."""

    file: Path
    imagined: list[bool]
    messages: list[str]


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Paused:
    file = tmp_path_factory.mktemp("paused") / "agent.zip"
    model = AGDPPO("MlpPolicy", unpredictable_env(), **SMALL | {"world_model_gradient_steps": 20})
    imagined, messages = learn_and_watch(model, n_rollouts=24)
    model.save(file)
    return Paused(file, imagined, messages)


def test_imagination_pauses_if_its_advantages_do_not_correlate_with_real_ones(paused: Paused) -> None:
    # The first rollout is not tested on: there is no world model yet
    assert paused.imagined == [True] * 20 + [False] * 4
    assert sum("Imagination pauses" in message for message in paused.messages) == 1


def test_imagination_does_not_pause_if_it_is_reliable() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_gradient_steps": 20})
    imagined, messages = learn_and_watch(model, n_rollouts=24)
    assert imagined == [True] * 24 and not any("Imagination pauses" in message for message in messages)


def test_imagination_does_not_pause_if_pauses_are_off(paused: Paused) -> None:
    model = AGDPPO.load(paused.file, env=unpredictable_env(), min_advantage_correlation=-1)
    imagined, messages = learn_and_watch(model, n_rollouts=2)
    assert imagined == [True] * 2 and not any("Imagination pauses" in message for message in messages)


def test_imagination_goes_on_once_it_is_reliable_again(paused: Paused) -> None:
    model = AGDPPO.load(paused.file, env=predictable_env())
    imagined, _ = learn_and_watch(model, n_rollouts=20)
    assert not imagined[0] and imagined[-1]
    assert imagined == sorted(imagined)


def test_a_paused_agent_is_still_paused_when_it_is_loaded(paused: Paused) -> None:
    loaded = AGDPPO.load(paused.file, env=unpredictable_env())
    with pytest.warns(UserWarning, match="Imagination pauses"):
        loaded.learn(SMALL["n_steps"])
    assert loaded.rollout_buffer.n_imagined == 0


@pytest.mark.filterwarnings("ignore:Imagination pauses")
def test_a_pause_changes_nothing_else(paused: Paused) -> None:
    """What follows a pause is PPO's update of the real transitions, while the world model goes on learning."""
    parameters = []
    for settings in ({}, {"synthetic_ratio": 0}):
        agent = AGDPPO.load(paused.file, env=unpredictable_env(), min_advantage_correlation=0.999, **settings)
        n_updates = agent.world_model.n_updates.item()
        agent.set_random_seed(0)
        agent.learn(SMALL["n_steps"])
        parameters.append([parameter.clone() for parameter in agent.policy.parameters()])
        assert (agent.world_model.n_updates > n_updates) == (not settings)
    assert all(th.equal(parameter, other) for parameter, other in zip(*parameters, strict=True))


def a2c(callback: GuidanceCallback, n_steps: int, n_timesteps: int, *logs: KVWriter) -> None:
    """Train A2C with the callback."""
    model = A2C("MlpPolicy", "Pendulum-v1", n_steps=n_steps, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    model.set_logger(Logger(None, [*logs]))
    model.learn(n_timesteps, callback, log_interval=1)


@pytest.mark.parametrize(("n_steps", "n_tested"), [(5, 60), (40, 40), (300, 256)])
def test_the_world_model_is_tested_on_all_that_it_was_not_trained_on(
    n_steps: int, n_tested: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = GuidanceCallback(**SETTINGS | {"real_steps_per_update": 60})
    tested: list[th.Tensor] = []
    predict = DiffusionWorldModel.predict
    monkeypatch.setattr(
        DiffusionWorldModel, "predict", lambda self, states, *rest: tested.append(states) or predict(self, states, *rest)
    )
    monkeypatch.setattr("sb3_agd.imagination.held_out_errors.missed_randomness", lambda *_: th.zeros(()))
    a2c(callback, n_steps, 600)
    assert {len(states) for states in tested} <= {n_tested, n_tested - 1}
    assert callback.imagination is not None
    buffer = callback.imagination.replay_buffer
    # The buffer also has a row for the last state of each episode, which may be one of those looked at
    newest = {tuple(state) for state in buffer.observations[buffer.recent_transitions(max(n_steps, 60) + 2)].tolist()}
    drawn = {tuple(state) for state in tested[-1].tolist()}
    # Drawn with replacement
    assert len(drawn) > n_tested / 2 and drawn <= newest


def test_the_correlation_is_that_of_many_transitions_however_short_rollouts_are() -> None:
    callback, log = GuidanceCallback(**SETTINGS | {"real_steps_per_update": 5, "world_model_gradient_steps": 1}), KeptLog()
    a2c(callback, 5, 600, log)
    assert callback.imagination is not None
    pairs = callback.imagination.state.advantages
    # Rollouts of 5 transitions hold 14 transitions of segments of 4
    assert pairs is not None and pairs.shape == (2, 256 * 4) and len({*pairs[1].tolist()}) > 256
    logged = [row["agd/advantage_correlation"] for row in log.rows if "agd/advantage_correlation" in row]
    assert logged[-1] == pytest.approx(np.corrcoef(pairs)[0, 1], abs=1e-4)

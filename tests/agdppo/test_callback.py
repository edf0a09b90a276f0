"""The callback: when the world model is fitted and used, with which settings, and what is logged."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from logs import ImaginedRows, KeptLog
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import CallbackList, EveryNTimesteps
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, GuidanceCallback
from sb3_agd.imagination import Guidance


def test_the_callback_is_refused_where_it_does_not_see_each_step() -> None:
    model = A2C("MlpPolicy", ToyEnv(), n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer)
    for callback in (GuidanceCallback(), CallbackList([GuidanceCallback()])):
        with pytest.raises(ValueError, match="GuidanceCallback must be called at each step, but EveryNTimesteps"):
            model.learn(64, EveryNTimesteps(32, callback))


@pytest.mark.parametrize(
    "synthetic_ratio, real_data_ratio, n_repeats",
    [(8, 0.0, 1), (8, 0.05, 1), (8, 0.2, 2), (8, 0.3, 4), (8, 0.5, 8), (5, 0.2, 2), (16, 0.2, 4), (0.5, 0.2, 1)],
)
def test_real_rows_are_repeated_until_they_have_their_share(
    synthetic_ratio: float, real_data_ratio: float, n_repeats: int
) -> None:
    settings = SMALL | {"synthetic_ratio": synthetic_ratio, "real_data_ratio": real_data_ratio}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **settings).learn(64)
    rows = next(model.rollout_buffer.get(None))
    assert len(rows.advantages) == 32 * n_repeats + 32 * synthetic_ratio


# Without the arguments of PPO
GUIDANCE = {
    key: value
    for key, value in SMALL.items()
    if key not in ("n_steps", "batch_size", "n_epochs", "policy_kwargs", "device", "seed")
}


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO])
def test_the_callback_works_alone_with_other_on_policy_algorithms(algorithm: Any) -> None:
    callback = GuidanceCallback(**GUIDANCE)
    model = algorithm("MlpPolicy", "Pendulum-v1", n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    model.learn(128, callback)
    assert callback.world_model.n_updates > 0
    assert model.rollout_buffer.n_imagined == 64
    rows = next(model.rollout_buffer.get(None))
    assert len(rows.advantages) == 32 + 64


def test_the_callback_refuses_other_algorithms_and_buffers() -> None:
    for model in (PPO("MlpPolicy", "Pendulum-v1", n_steps=32), SAC("MlpPolicy", "Pendulum-v1", buffer_size=100)):
        with pytest.raises(ValueError, match="AugmentedRolloutBuffer"):
            model.learn(32, GuidanceCallback())


def test_the_callback_goes_on_with_a_model_loaded_from_a_file(tmp_path: Path) -> None:
    settings = {"n_steps": 32, "rollout_buffer_class": AugmentedRolloutBuffer, "device": "cpu"}
    callback = GuidanceCallback(horizon=4, world_model_warmup=0, world_model_gradient_steps=2, real_steps_per_update=32)
    first = A2C("MlpPolicy", "Pendulum-v1", **settings).learn(64, callback)
    first.save(tmp_path / "model")
    n_updates = callback.world_model.n_updates.item()
    second = A2C.load(tmp_path / "model", env=first.env, device="cpu").learn(64, callback)
    assert callback.imagination.model is second
    assert callback.world_model.n_updates == n_updates + 2 * 2
    # The segments of one run never reach into the other
    assert len(callback.imagination.replay_buffer) == 128
    steps = callback.imagination.replay_buffer.recent_transitions(1000)[1]
    assert (np.diff(steps) == 2).sum() == 1
    with pytest.raises(ValueError, match=r"used with `observation_space` Box.*make a new GuidanceCallback"):
        A2C("MlpPolicy", "MountainCarContinuous-v0", **settings).learn(64, callback)


def test_a_second_guidance_callback_is_refused() -> None:
    with pytest.raises(ValueError, match="installs"):
        AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(32, GuidanceCallback())


def test_schedules_are_evaluated_at_each_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO(
        "MlpPolicy",
        "Pendulum-v1",
        **SMALL
        | {
            "synthetic_ratio": lambda progress: 4 * progress,
            "guidance_scale": lambda progress: progress,
            "world_model_learning_rate": lambda progress: 1e-3 * progress,
        },
    )
    scales, counts = [], []
    imagine_rows = model.imagination.imagine_rows

    def spy(guidance: Guidance, n_rows: int) -> tuple[RolloutBufferSamples, float]:
        rows, masked_share = imagine_rows(guidance, n_rows)
        scales.append((guidance.scale, model.imagination.state.critic_explained_variance))
        counts.append(len(rows.advantages))
        return rows, masked_share

    monkeypatch.setattr(model.imagination, "imagine_rows", spy)
    model.learn(128)
    # After each of the four rollouts, a quarter of the progress is used up; the last one leaves nothing to imagine
    explained = [variance for _, variance in scales]
    assert [scale for scale, _ in scales] == pytest.approx(np.multiply([0.75, 0.5, 0.25], explained))
    assert counts == [3 * 32, 2 * 32, 32]
    assert model.rollout_buffer.n_imagined == 0
    assert model.world_model.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.25)


def test_the_learning_rate_of_the_world_model_may_fall_to_zero() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_learning_rate": lambda progress: 1e-3 * progress})
    assert model.learn(64).world_model.optimizer.param_groups[0]["lr"] == 0


def test_a_synthetic_ratio_below_one_row_is_ppo() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"synthetic_ratio": 0.01}).learn(64)
    assert model.rollout_buffer.n_imagined == 0 and model.world_model.n_updates == 0
    callback = GuidanceCallback(synthetic_ratio=0.05, world_model_warmup=0, horizon=4)
    A2C("MlpPolicy", "Pendulum-v1", rollout_buffer_class=AugmentedRolloutBuffer, device="cpu").learn(20, callback)
    assert callback.world_model.n_updates == 0


def test_a_full_replay_buffer_ends_the_warmup() -> None:
    settings = SMALL | {"world_model_warmup": 1000, "buffer_size": 80}
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=1), **settings).learn(32)
    assert model.world_model.n_updates == 0
    model.learn(32, reset_num_timesteps=False)
    assert model.world_model.n_updates > 0


def test_a_schedule_that_ends_at_zero_survives_a_rollout_beyond_the_end() -> None:
    arguments = SMALL | {"synthetic_ratio": lambda progress: progress, "guidance_scale": lambda progress: progress}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **arguments).learn(40)
    assert model.num_timesteps == 64
    model.imagine(model.env.reset())


def test_waits_for_the_warmup() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 65})
    model.learn(64)
    assert model.rollout_buffer.n_imagined == 0 and model.world_model.n_updates == 0
    model.learn(32, reset_num_timesteps=False)
    assert model.rollout_buffer.n_imagined == 64 and model.world_model.n_updates == 5 * 3


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
def test_logs_its_figures(guidance_mode: str) -> None:
    recorder = KeptLog()
    model = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL | {"guidance_mode": guidance_mode})
    model.set_logger(Logger(None, [recorder]))
    model.learn(128)
    expected = {
        "world_model_loss",
        "termination_loss",
        "held_out_error_first",
        "held_out_error",
        "n_imagined",
        "n_imagined_total",
        "paused",
        "masked_share",
        "imagined_advantage_mean",
        "real_advantage_mean",
        "critic_explained_variance",
        "imagined_termination_rate",
        "real_termination_rate",
        "advantage_correlation",
        "fit_time_share",
        "imagine_time_share",
        # Candidates are selected, not moved
        *(["guidance_norm"] if guidance_mode == "gradient" else []),
    }
    last = recorder.rows[-1]
    assert expected == {key.removeprefix("agd/") for key in last if key.startswith("agd/")}
    assert all(np.isfinite(last[f"agd/{key}"]) for key in expected)
    assert 0 < last["agd/fit_time_share"] + last["agd/imagine_time_share"] < 1


def test_figures_are_those_since_the_newest_log() -> None:
    recorder = KeptLog()
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.set_logger(Logger(None, [recorder]))
    model.learn(6 * 32, log_interval=3)
    rows = [row for row in recorder.rows if "agd/n_imagined" in row]
    assert [row["agd/n_imagined"] for row in rows] == [3 * 64, 3 * 64]
    assert all(0 < row["agd/fit_time_share"] + row["agd/imagine_time_share"] < 1 for row in rows)


def test_warnings_say_that_the_policy_is_not_updated_without_imagined_transitions() -> None:
    settings = SMALL | {"real_steps_per_update": 128, "policy_data": "imagined"}
    with pytest.warns(UserWarning, match=r"most of the time, the policy is not updated \(`policy_data=\"imagined\"`\)"):
        AGDPPO("MlpPolicy", "Pendulum-v1", **settings).learn(32)
    with pytest.warns(UserWarning, match="most of the time, the policy learns from real transitions alone"):
        AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"real_steps_per_update": 128}).learn(32)


def test_figures_of_imagination_are_not_logged_without_it() -> None:
    recorder = KeptLog()
    arguments = SMALL | {"guidance_mode": "gradient", "synthetic_ratio": lambda progress: 1.0 if progress > 0.5 else 0.0}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **arguments)
    model.set_logger(Logger(None, [recorder]))
    model.learn(128)
    for figure in ("guidance_norm", "masked_share"):
        assert [f"agd/{figure}" in row for row in recorder.rows if "agd/n_imagined" in row] == [True, False, False, False]


def test_verbose_training_prints_when_imagination_begins(capsys: pytest.CaptureFixture[str]) -> None:
    AGDPPO("MlpPolicy", "Pendulum-v1", verbose=1, **SMALL | {"world_model_warmup": 64}).learn(128)
    assert capsys.readouterr().out.count("Imagination begins after 64 steps") == 1


def test_short_rollouts_are_imagined_from_once_per_real_steps_per_update() -> None:
    callback = GuidanceCallback(**GUIDANCE | {"real_steps_per_update": 20})
    model = A2C("MlpPolicy", ToyEnv(), n_steps=5, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu", seed=0)
    rows = ImaginedRows()
    with pytest.warns(UserWarning, match="Rollouts have 5 transitions.*most of the time, the policy learns from real"):
        model.learn(60, [callback, rows])
    assert [count > 0 for count in rows.counts] == [False, False, False, True] * 3
    # Five times as many updates at first
    assert callback.world_model.n_updates == (5 + 1 + 1) * SMALL["world_model_gradient_steps"]


def test_rollouts_of_half_of_real_steps_per_update_are_all_imagined_from() -> None:
    rows = ImaginedRows()
    AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"n_steps": 16, "real_steps_per_update": 32}).learn(64, rows)
    assert [count > 0 for count in rows.counts] == [True] * 4


@pytest.mark.parametrize("settings", [{}, {"real_steps_per_update": 1000, "synthetic_ratio": 0}])
def test_long_rollouts_and_plain_ppo_raise_no_warning_of_short_rollouts(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL | settings).learn(64)


def test_settings_of_a_callback_may_change_before_training_begins() -> None:
    callback = GuidanceCallback(**GUIDANCE)
    callback.horizon = 2
    A2C("MlpPolicy", ToyEnv(), n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu").learn(64, callback)
    assert callback.world_model.horizon == 2


def test_the_optimiser_follows_the_world_model_to_another_model() -> None:
    callback = GuidanceCallback(**GUIDANCE)
    model = A2C("MlpPolicy", ToyEnv(), n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu").learn(
        64, callback
    )
    states = callback.world_model.optimizer.state
    for each in states.values():
        # There is no second device, but moments are taken to the parameters' type together with their device
        each["exp_avg"] = each["exp_avg"].double()
    callback.imagination.attach(model)
    assert states and {each["exp_avg"].dtype for each in callback.world_model.optimizer.state.values()} == {th.float32}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"world_model_warmup": 1000}, r"\(`world_model_warmup`, 1000\)"),
        ({"real_steps_per_update": 512}, r"\(`real_steps_per_update`, 512\)"),
    ],
)
def test_what_kept_imagination_from_beginning_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=f"ended after 64 steps, before imagination began {message}"):
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL | settings).learn(64)


def test_a_schedule_without_imagination_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"synthetic_ratio": lambda _: 0.0}).learn(64)


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_training_that_ends_before_imagination_begins_warns_once(verbose: int) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), verbose=verbose, **SMALL | {"world_model_warmup": 1000})
    with pytest.warns(
        UserWarning, match=r"ended after 64 steps, before imagination began \(`world_model_warmup`, 1000\)"
    ) as caught:
        model.learn(64)
    assert sum("before imagination began" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"synthetic_ratio": 0}).learn(64)


def test_imagined_transitions_of_all_rounds_are_logged() -> None:
    recorder = KeptLog()
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"n_steps": 96})
    model.set_logger(Logger(None, [recorder]))
    model.learn(3 * 96)
    rows = [row for row in recorder.rows if "agd/n_imagined" in row]
    # Three rounds of 64 transitions; those after the first are part of the next log
    assert [row["agd/n_imagined"] for row in rows] == [64, 3 * 64, 3 * 64]
    assert [row["agd/n_imagined_total"] for row in rows] == [64, 4 * 64, 7 * 64]
    assert [row["agd/paused"] for row in rows] == [0, 0, 0]


def test_the_progress_bar_shows_the_first_fit_of_the_world_model(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(callbacks.tqdm, "set_description", lambda self, text="", **_: shown.append(text))
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(96, progress_bar=True)
    assert shown == [f"World model: update {number} of 15" for number in range(1, 16)] + [""]

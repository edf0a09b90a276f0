"""GuidanceCallback: it imagines as AGDPPO does, and what it has learned is saved and loaded."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, ExponentialAdvantageGuide, GuidanceCallback
from sb3_agd.imagination import Settings

PPO_ONLY = ("n_steps", "batch_size", "n_epochs", "policy_kwargs", "device", "seed")
GUIDANCE = {key: value for key, value in SMALL.items() if key not in PPO_ONLY} | {"guidance": "eag"}
STARTS = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]], dtype=np.float32)


def make_model(algorithm: Any = A2C, env: Any = "Pendulum-v1", n_steps: int = 32) -> OnPolicyAlgorithm:
    return algorithm("MlpPolicy", env, n_steps=n_steps, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu", seed=0)


def assert_same(some: Any, others: Any) -> None:
    """The same nested dictionaries and lists of tensors and numbers."""
    if isinstance(some, th.Tensor):
        assert th.equal(some, others)
    elif isinstance(some, (dict, list)):
        assert len(some) == len(others)
        for key in some if isinstance(some, dict) else range(len(some)):
            assert_same(some[key], others[key])
    else:
        assert some == others


@pytest.fixture
def trained() -> tuple[OnPolicyAlgorithm, GuidanceCallback]:
    callback = GuidanceCallback(**GUIDANCE)
    return make_model().learn(64, callback), callback


def test_a_callback_imagines_as_agdppo_does() -> None:
    assert GuidanceCallback.imagine is AGDPPO.imagine
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL, guidance="eag").learn(64)
    callback = GuidanceCallback(**GUIDANCE)
    callback.imagination = model.imagination
    for arguments in ({}, {"horizon": 9}, {"guidance": "none"}, {"actions": np.zeros((2, 3, 1))}):
        ours, theirs = (owner.imagine(STARTS, seed=1, **arguments).to_dict() for owner in (callback, model))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("algorithm", [A2C, PPO, TRPO])
def test_a_callback_imagines_with_the_policy_of_its_algorithm(algorithm: Any) -> None:
    callback = GuidanceCallback(**GUIDANCE)
    make_model(algorithm).learn(64, callback)
    segments = callback.imagine(STARTS, seed=1)
    assert segments.observations.shape == (2, SMALL["horizon"] + 1, 3)
    assert len(callback.replay_buffer) == 64


def test_a_callback_imagines_with_its_present_settings(trained: tuple[OnPolicyAlgorithm, GuidanceCallback]) -> None:
    _, callback = trained
    expected = callback.imagine(STARTS, guidance="none", seed=1).actions
    assert not np.array_equal(callback.imagine(STARTS, guidance_scale=5.0, seed=1).actions, expected)
    callback.guidance = "none"
    assert np.array_equal(callback.imagine(STARTS, seed=1).actions, expected)


def test_a_callback_that_was_not_trained_has_nothing_to_imagine_or_save(tmp_path: Path) -> None:
    callback = GuidanceCallback()
    for call in (
        lambda: callback.imagine(STARTS),
        lambda: callback.save(tmp_path / "callback"),
        lambda: callback.save_replay_buffer(tmp_path / "transitions"),
        lambda: callback.world_model,
    ):
        with pytest.raises(ValueError, match="GuidanceCallback has no world model before its first training: call `learn`"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_callback_is_what_was_saved(tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback]) -> None:
    model, callback = trained
    callback.guidance_scale = 3.0
    model.save(tmp_path / "model")
    callback.save(tmp_path / "folder" / "callback")
    assert (tmp_path / "folder" / "callback.zip").is_file()
    loaded = GuidanceCallback.load(tmp_path / "folder" / "callback", A2C.load(tmp_path / "model", device="cpu"))
    assert loaded.settings == Settings.of(callback)
    for ours, theirs in (
        (loaded.world_model, callback.world_model),
        (loaded.world_model.optimizer, callback.world_model.optimizer),
    ):
        assert_same(ours.state_dict(), theirs.state_dict())
    state, before = loaded.imagination.state, callback.imagination.state
    assert (state.advantage_std, state.value_range) == (before.advantage_std, before.value_range)
    # Without a seed, both draw on from the same private generator
    assert np.array_equal(loaded.imagine(STARTS).observations, callback.imagine(STARTS).observations)


def test_a_loaded_callback_goes_on_training(tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback]) -> None:
    model, callback = trained
    model.save(tmp_path / "model")
    callback.save(tmp_path / "callback")
    callback.save_replay_buffer(tmp_path / "transitions")
    n_updates = callback.world_model.n_updates.item()
    model = A2C.load(tmp_path / "model", env=model.env, device="cpu")
    loaded = GuidanceCallback.load(tmp_path / "callback", model, world_model_gradient_steps=2)
    loaded.load_replay_buffer(tmp_path / "transitions")
    assert len(loaded.replay_buffer) == 64
    model.learn(32, loaded, reset_num_timesteps=False)
    assert len(loaded.replay_buffer) == 96
    assert loaded.world_model.n_updates == n_updates + 2
    assert model.rollout_buffer.n_imagined == 64


def test_a_guide_of_ones_own_and_an_open_file_are_saved_and_loaded() -> None:
    class OwnGuide(ExponentialAdvantageGuide):
        pass

    callback, file = (
        GuidanceCallback(**GUIDANCE | {"guidance": OwnGuide(), "guidance_scale": lambda progress: progress}),
        io.BytesIO(),
    )
    model = make_model().learn(64, callback)
    callback.save(file)
    loaded = GuidanceCallback.load(file, model)
    assert type(loaded.guidance).__name__ == "OwnGuide" and loaded.guidance_scale(0.25) == 0.25


def test_a_save_that_fails_keeps_the_file_that_was_there(
    tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, callback = trained
    callback.save(tmp_path / "callback.zip")
    before = (tmp_path / "callback.zip").read_bytes()

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(th, "save", full_disk)
    with pytest.raises(OSError, match="nothing was saved; the file that was there is intact"):
        callback.save(tmp_path / "callback.zip")
    assert (tmp_path / "callback.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["callback.zip"]


def test_damaged_and_foreign_files_are_named_with_the_reason(
    tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback]
) -> None:
    model, callback = trained
    callback.save(tmp_path / "good.zip")
    content = (tmp_path / "good.zip").read_bytes()
    (tmp_path / "truncated.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.zip").write_bytes(b"text")
    model.save(tmp_path / "agent.zip")
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=100, device="cpu").save(tmp_path / "sac.zip")
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "agdppo.zip")
    for name, reason in (
        ("truncated.zip", "it is damaged or incomplete"),
        ("text.zip", "it is damaged or incomplete"),
        ("agent.zip", "it holds no GuidanceCallback"),
        ("agdppo.zip", "it holds no GuidanceCallback"),
        ("sac.zip", "it was saved by another algorithm, whose policy is a SACPolicy"),
    ):
        with pytest.raises(ValueError, match=f"{name} cannot be loaded as GuidanceCallback: {reason}"):
            GuidanceCallback.load(tmp_path / name, model)
    with pytest.raises(ValueError, match=r"good.zip cannot be loaded as AGDPPO: it was saved by GuidanceCallback"):
        AGDPPO.load(tmp_path / "good.zip")
    with pytest.raises(FileNotFoundError):
        GuidanceCallback.load(tmp_path / "missing", model)


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback]) -> None:
    model, callback = trained
    callback.save(tmp_path / "new")
    data, parameters, _ = load_from_zip_file(tmp_path / "new", device="cpu")
    save_to_zip_file(tmp_path / "new", data | {"file_format": 1000}, parameters)
    with pytest.raises(ValueError, match="it is of format 1000, newer than"):
        GuidanceCallback.load(tmp_path / "new", model)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"env": "MountainCarContinuous-v0"}, r"its `observation_space` is Box\(.*that of the model is Box"),
        (
            {"env": ToyEnv(spaces.Box(np.array([-1, -1, -8], np.float32), np.array([1, 1, 8], np.float32)))},
            "its `action_space`",
        ),
    ],
)
def test_a_model_with_other_spaces_is_refused(
    arguments: dict[str, Any], reason: str, tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback]
) -> None:
    trained[1].save(tmp_path / "callback")
    with pytest.raises(ValueError, match=f"cannot be loaded as GuidanceCallback: {reason}"):
        GuidanceCallback.load(tmp_path / "callback", make_model(**arguments))


def test_bad_arguments_are_refused_when_a_callback_is_loaded(
    tmp_path: Path, trained: tuple[OnPolicyAlgorithm, GuidanceCallback]
) -> None:
    model, callback = trained
    callback.save(tmp_path / "callback")
    with pytest.raises(ValueError, match="`n_candidates` must be an integer of at least 2"):
        GuidanceCallback.load(tmp_path / "callback", model, n_candidates=1)
    with pytest.raises(ValueError, match="`model` must be an on-policy algorithm, not SAC"):
        GuidanceCallback.load(tmp_path / "callback", SAC("MlpPolicy", "Pendulum-v1", buffer_size=100, device="cpu"))

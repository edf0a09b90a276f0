"""Files of agents: what is saved is loaded, and what cannot be loaded is refused by name."""

import errno
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO, ExponentialAdvantageGuide


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["model", "model.zip", Path("new") / "folder" / "model.zip"])
def test_a_saved_file_has_the_name_that_sb3_gives_it(name: str | Path, tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    model.save(tmp_path / name)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == ["model.zip"]
    AGDPPO.load(tmp_path / name)


def test_a_crash_while_saving_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "transitions.npz")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(th, "save", full_disk)
        patch.setattr(np, "savez", full_disk)
        for save, name in ((model.save, "model.zip"), (model.save_replay_buffer, "transitions.npz")):
            with pytest.raises(OSError, match=f"No space left.*the file that was there is intact.*{name}") as raised:
                save(tmp_path / name)
            assert raised.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_symbolic_link_is_kept_when_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.zip").symlink_to(tmp_path / "elsewhere.zip")
    AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").is_symlink()
    AGDPPO.load(tmp_path / "elsewhere.zip")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"nothing was saved.*model\.zip"):
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(tmp_path / "file" / "model.zip")


def test_an_open_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "model").open("wb") as file:
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(file)
    AGDPPO.load(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "model.zip"
    AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32).save(file)
    return file


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_as_damaged(share: float, saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.zip cannot be loaded as AGDPPO: it is damaged or incomplete"):
        AGDPPO.load(tmp_path / "cut.zip")


def test_a_file_of_another_algorithm_is_refused_by_name(tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac.zip")
    with pytest.raises(ValueError, match=r"sac\.zip.*another algorithm, whose policy is a SACPolicy"):
        AGDPPO.load(tmp_path / "sac.zip")
    PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "ppo.zip")
    with pytest.raises(ValueError, match=r"ppo\.zip.*To start from a file of PPO, call `set_parameters"):
        AGDPPO.load(tmp_path / "ppo.zip")


def test_an_environment_with_other_spaces_is_refused_by_name(saved: Path) -> None:
    other = ToyEnv(observation_space=spaces.Box(-1, 1, (5,)))
    with pytest.raises(ValueError, match=r"model\.zip.*Observation spaces do not match.*\(3,\).*\(5,\)"):
        AGDPPO.load(saved, env=other)
    other = ToyEnv(action_space=spaces.Discrete(7))
    with pytest.raises(ValueError, match=r"model\.zip.*Action spaces do not match.*Discrete\(7\)"):
        AGDPPO.load(saved, env=other)


def test_a_world_model_of_another_size_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)model\.zip.*size mismatch for networks.denoiser"):
        AGDPPO.load(saved, world_model_kwargs={"network_kwargs": {"width": 32, "depth": 1}})


def test_a_file_of_a_newer_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sb3_agd.checkpoint.resumable_ppo.FILE_FORMAT", 99)
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"model\.zip.*format 99, newer than"):
        AGDPPO.load(tmp_path / "model.zip")
    with (tmp_path / "model.zip").open("rb") as file, pytest.raises(ValueError, match="format 99, newer than"):
        AGDPPO.load(file)


def test_the_world_model_of_a_file_cannot_run_code(saved: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(tmp_path / "model.zip", "w") as target:
        for name in source.namelist():
            with target.open(name, "w") as file:
                if name == "world_model.pth":
                    th.save({"weights": Hostile()}, file)
                else:
                    file.write(source.read(name))
    with pytest.raises(ValueError, match=r"model\.zip cannot be loaded"):
        AGDPPO.load(tmp_path / "model.zip")
    assert not (tmp_path / "harm").exists()


def test_a_missing_file_and_a_folder_raise_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip"):
        AGDPPO.load("nowhere.zip")
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.zip"):
        AGDPPO.load(tmp_path / "folder.zip")


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_a_loaded_model_predicts_and_imagines_identically_and_goes_on_learning(env_id: str, tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", env_id, **SMALL).learn(100)
    starts = model.env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model")
        loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert np.array_equal(model.predict(starts, deterministic=True)[0], loaded.predict(starts, deterministic=True)[0])
    # With a seed, and going on with the private stream
    for seed in (5, None):
        first, second = model.imagine(starts, seed=seed), loaded.imagine(starts, seed=seed)
        assert np.array_equal(first.observations, second.observations)
        assert np.array_equal(first.actions, second.actions)
    first_state, second_state = (m.world_model.optimizer.state_dict()["state"] for m in (model, loaded))
    assert all(th.equal(first_state[i]["exp_avg"], second_state[i]["exp_avg"]) for i in first_state)
    loaded.learn(100)
    assert loaded.world_model.n_updates > model.world_model.n_updates


def test_parameters_of_a_file_bring_a_trained_world_model(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "model")
    other = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 1000})
    other.set_parameters(tmp_path / "model")
    other.learn(32)
    assert other.rollout_buffer.n_imagined > 0 and other.world_model.n_updates == model.world_model.n_updates


def test_a_model_loads_without_an_environment(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", guidance=ExponentialAdvantageGuide(), **SMALL).learn(64)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    assert loaded.imagine(np.zeros((2, 3))).rewards.shape == (2, SMALL["horizon"])


def test_a_model_loaded_without_environment_imagines_with_the_normalisation_it_was_trained_with(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SMALL).learn(128)
    model.save(tmp_path / "model")
    starts = np.array([[1.0, 0.0, 2.0]])
    expected = model.imagine(starts, guidance="eag", seed=1)
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    loaded.save(tmp_path / "again")
    segments = AGDPPO.load(tmp_path / "again", device="cpu").imagine(starts, guidance="eag", seed=1)
    assert np.array_equal(segments.observations, expected.observations)
    assert np.array_equal(segments.actions, expected.actions)


def test_transitions_are_saved_and_loaded(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save_replay_buffer(tmp_path / "folder" / "transitions")
    loaded = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    loaded.load_replay_buffer(tmp_path / "folder" / "transitions")
    assert len(loaded.replay_buffer) == 64
    assert np.array_equal(loaded.replay_buffer.observations, model.replay_buffer.observations)
    loaded.learn(64)
    assert len(loaded.replay_buffer) == 128


def test_a_corrupt_file_of_transitions_is_named_and_changes_nothing(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save_replay_buffer(tmp_path / "good.npz")
    content = (tmp_path / "good.npz").read_bytes()
    for name, damaged in (("truncated.npz", content[: len(content) // 2]), ("text.npz", b"text"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            model.load_replay_buffer(tmp_path / name)
    assert len(model.replay_buffer) == 64
    other = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="observation dimensions is 3, here it is 4"):
        other.load_replay_buffer(tmp_path / "good.npz")


def test_warm_starts_from_a_ppo_file(tmp_path: Path) -> None:
    ppo = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=SMALL["policy_kwargs"], n_steps=32, device="cpu").learn(32)
    ppo.save(tmp_path / "ppo")
    with pytest.raises(ValueError, match="set_parameters"):
        AGDPPO.load(tmp_path / "ppo")
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.set_parameters(tmp_path / "ppo", exact_match=False)
    assert all(th.equal(a, b) for a, b in zip(ppo.policy.parameters(), model.policy.parameters(), strict=True))
    # The other way round
    model.learn(64).save(tmp_path / "agdppo")
    with pytest.raises(Exception, match="world_model"):
        PPO.load(tmp_path / "agdppo")
    ppo.policy.load_state_dict(model.policy.state_dict())


def test_a_file_that_is_saved_again_has_the_present_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "old")
    monkeypatch.setattr("sb3_agd.checkpoint.resumable_ppo.FILE_FORMAT", 2)
    AGDPPO.load(tmp_path / "old").save(tmp_path / "new")
    data, _, _ = load_from_zip_file(tmp_path / "new")
    assert data["file_format"] == 2


def test_a_model_loaded_without_transitions_imagines_but_does_not_fit_on_a_handful(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 64}).learn(64)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    n_updates = loaded.world_model.n_updates.item()
    loaded.learn(32)
    assert loaded.rollout_buffer.n_imagined == 64 and loaded.world_model.n_updates == n_updates
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.world_model.n_updates == n_updates + 3

"""Experiments of RL-Zoo: shipped settings, the user's own callbacks, and what an error leaves behind."""

import argparse
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_zoo3
import torch as th
import yaml
from environments import SMALL
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.agdppo import ResumableCheckpointCallback
from sb3_agd.zoo import register
from sb3_agd.zoo.experiment_manager import AGDExperimentManager, passed_through_package
from sb3_agd.zoo.settings import HYPERPARAMS, find_config, readable, split_config

MUJOCO = ["HalfCheetah", "Hopper", "Walker2d", "Reacher", "Ant", "Swimmer", "InvertedPendulum", "InvertedDoublePendulum"]
ENVIRONMENTS = [*(f"{name}-v5" for name in MUJOCO), "Pendulum-v1", "CartPole-v1"]
SHIPPED = {
    "agdppo": ENVIRONMENTS,
    "ppo": ENVIRONMENTS,
    "trpo": ENVIRONMENTS,
    "sac": [env_id for env_id in ENVIRONMENTS if env_id != "CartPole-v1"],
    "tqc": [f"{name}-v5" for name in MUJOCO[:4]],
    "crossq": [f"{name}-v5" for name in MUJOCO[:4]],
}
# Policy settings that runs of AGDPPO speak for
MEASURED = {("agdppo", "Hopper-v5", key) for key in ("gamma", "gae_lambda", "policy_kwargs")}
MEASURED |= {("agdppo", "Walker2d-v5", key) for key in ("clip_range", "policy_kwargs")}
MEASURED |= {("agdppo", env_id, "policy_kwargs") for env_id in ("HalfCheetah-v5", "Ant-v5")}
# What the network, the advantages and the policy loss are made of
POLICY_SETTINGS = ("normalize", "policy_kwargs", "gamma", "gae_lambda", "clip_range", "vf_coef", "max_grad_norm")
register()


class OwnCheckpoints(CheckpointCallback):
    def __init__(self, save_freq: int):
        super().__init__(save_freq, "own")


def shipped(name: str) -> dict[str, dict[str, Any]]:
    """Settings of all tasks in a shipped file."""
    return yaml.safe_load((HYPERPARAMS / f"{name}.yml").read_text())


@pytest.mark.parametrize(("name", "env_id"), [(name, env_id) for name in SHIPPED for env_id in SHIPPED[name]])
def test_shipped_settings_build_their_algorithm(name: str, env_id: str, tmp_path: Path) -> None:
    manager = AGDExperimentManager(argparse.Namespace(), name, env_id, str(tmp_path), eval_freq=-1, verbose=0, device="cpu")
    assert manager.config == str(HYPERPARAMS / f"{name}.yml")
    experiment = manager.setup_experiment()
    assert experiment is not None
    assert manager.n_timesteps > 0
    if isinstance(experiment[0], AGDPPO):
        assert isinstance(experiment[0].world_model_learning_rate, float)
    experiment[0].env.close()


@pytest.mark.parametrize(("algo", "n_tasks"), [("ppo", 10), ("trpo", 7), ("sac", 6), ("tqc", 3), ("crossq", 3)])
def test_baselines_have_the_values_of_the_zoo_wherever_it_has_any(algo: str, n_tasks: int) -> None:
    theirs = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml").read_text())
    compared = set()
    for env_id, settings in shipped(algo).items():
        for version in ("v1", "v2", "v4"):
            for key, value in theirs.get(f"{env_id.split('-')[0]}-{version}", {}).items():
                assert settings[key] == value, (env_id, key)
                compared.add(env_id)
    assert len(compared) == n_tasks


def test_agdppo_shares_the_policy_settings_of_ppo() -> None:
    baseline = shipped("ppo")
    for env_id in SHIPPED["agdppo"]:
        ours, theirs = shipped("agdppo")[env_id], baseline[env_id]
        for key in POLICY_SETTINGS:
            if ("agdppo", env_id, key) not in MEASURED:
                assert ours.get(key) == theirs.get(key), (env_id, key)


def test_ratio_and_scale_may_fall_linearly() -> None:
    initials = {"synthetic_ratio": 16, "guidance_scale": 0.15, "world_model_learning_rate": 3e-3, "learning_rate": 3e-4}
    settings = {name: f"lin_{initial}" for name, initial in initials.items()} | {"gamma": 0.9}
    settings = AGDExperimentManager._preprocess_schedules(settings)
    for name, initial in initials.items():
        assert [settings[name](progress) for progress in (1.0, 0.5, 0.0)] == [initial, initial / 2, 0]
    AGDPPO("MlpPolicy", "CartPole-v1", **settings)
    assert AGDExperimentManager._preprocess_schedules({"synthetic_ratio": 8}) == {"synthetic_ratio": 8}
    with pytest.raises(ValueError, match=r"`synthetic_ratio` must be a number, or text such as lin_16.*not 'cos_16'"):
        AGDExperimentManager._preprocess_schedules({"synthetic_ratio": "cos_16"})


@pytest.mark.parametrize(("fault", "ours"), [("policy", False), ("update", False), ("rule", True)])
def test_an_error_is_this_packages_only_if_its_code_was_at_work(fault: str, ours: bool) -> None:
    changes = {"rule": {"termination_fn": lambda *_: np.zeros(3)}, "update": {"vf_coef": math.nan}, "policy": {}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"real_steps_per_update": 8} | changes[fault])
    if fault == "policy":
        # As after an update with hyperparameters that make it diverge
        model.policy.load_state_dict(
            {name: th.full_like(tensor, th.nan) for name, tensor in model.policy.state_dict().items()}
        )
    with pytest.raises(ValueError, match="`termination_fn`" if fault == "rule" else "to satisfy the constraint") as error:
        model.learn(64)
    assert passed_through_package(error.value.__traceback__) == ours


def test_a_users_own_checkpoints_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {f"{__name__}.OwnCheckpoints": {"save_freq": 9}}
    settings = {"CartPole-v1": {"n_timesteps": 64, "policy": "MlpPolicy", "callback": [own]}}
    arguments = argparse.Namespace(save_replay_buffer=False)
    manager = AGDExperimentManager(
        arguments, "agdppo", "CartPole-v1", str(tmp_path), config="own.yml", save_freq=32, eval_freq=-1
    )
    (tmp_path / "own.yml").write_text(yaml.safe_dump(settings))
    manager.setup_experiment()
    assert [type(callback) for callback in manager.callbacks] == [OwnCheckpoints, ResumableCheckpointCallback]


def test_interrupted_processes_do_not_cost_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = AGDExperimentManager(argparse.Namespace(), "agdppo", "CartPole-v1", str(tmp_path))

    def close() -> None:
        raise BrokenPipeError("these processes have ended")

    def interrupted(*_: Any) -> None:
        close()

    def failed(*_: Any) -> None:
        try:
            raise RuntimeError("a process has died")
        finally:
            close()

    def disconnected(*_: Any) -> None:
        raise ConnectionError("a callback has lost its server")

    # By the class itself: the zoo's name for it is ours once AGDPPO is registered
    (zoos,) = AGDExperimentManager.__bases__
    monkeypatch.setattr(zoos, "learn", interrupted)
    manager.learn(PPO("MlpPolicy", "CartPole-v1"))
    for learn, error in ((failed, RuntimeError), (disconnected, ConnectionError)):
        monkeypatch.setattr(zoos, "learn", learn)
        with pytest.raises(error, match=r"a .* has"):
            manager.learn(PPO("MlpPolicy", "CartPole-v1"))


def test_the_users_file_comes_first_and_the_zoos_last(tmp_path: Path) -> None:
    assert find_config("own.yml", "ppo", "Hopper-v5") == "own.yml"
    assert find_config("own.package", "agdppo", "Hopper-v5") == "own.package"
    assert find_config("ppo.yml", "agdppo", "Hopper-v5") == str(HYPERPARAMS / "ppo.yml")
    assert find_config("paper.yml:agd_sag", "agdppo", "Hopper-v5") == str(HYPERPARAMS / "paper.yml") + ":agd_sag"
    for file in ("own.yml:best", "own.yaml:best"):
        assert find_config(file, "ppo", "Hopper-v5") == file
        assert split_config(file) == (file.removesuffix(":best"), "best")
    assert find_config(None, "ppo", "Hopper-v5") == str(HYPERPARAMS / "ppo.yml")
    assert find_config(None, "ppo", "MountainCar-v0") is None
    assert find_config(None, "a2c", "Hopper-v5") is None
    # The zoo has no file for it
    assert find_config(None, "agdppo", "MountainCar-v0") == str(HYPERPARAMS / "agdppo.yml")


def test_an_entry_is_named_and_never_the_file_that_it_was_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = {"best": {"Hopper-v5": {"gamma": 0.9}, "Ant-v5": {}}, "any": {"default": {"gamma": 0.8}}}
    (tmp_path / "own.yml").write_text(yaml.safe_dump(entries))

    def read(entry: str, env_id: str) -> dict[str, Any]:
        manager = AGDExperimentManager(argparse.Namespace(), "ppo", env_id, str(tmp_path), config=f"own.yml:{entry}")
        return manager.read_hyperparameters()[0]

    assert read("best", "Hopper-v5") == {"gamma": 0.9} and read("any", "Hopper-v5") == {"gamma": 0.8}
    printed = capsys.readouterr().out.splitlines()
    files = [line for line in printed if line.startswith("Loading")]
    assert files == [f"Loading hyperparameters from: own.yml:{entry}" for entry in ("best", "any")]
    assert "Using 'default' hyperparameters" in printed
    for entry, env_id, complaint in (
        ("best", "CartPole-v1", "Entry 'best' of own.yml has no settings for CartPole-v1, only for Ant-v5, Hopper-v5"),
        ("worst", "Hopper-v5", "own.yml has no entry 'worst', only any, best"),
    ):
        with pytest.raises(ValueError, match=complaint):
            read(entry, env_id)
    assert capsys.readouterr().out == ""


def test_statistics_of_the_best_agent_outlive_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = AGDExperimentManager(argparse.Namespace(), "ppo", "Hopper-v5", str(tmp_path), eval_freq=32, n_timesteps=64)
    model, _ = manager.setup_experiment()
    (evaluation,) = manager.callbacks
    evaluation.init_callback(model)
    evaluation.callback_on_new_best.on_step()
    file = tmp_path / "ppo" / "Hopper-v5_1" / "Hopper-v5" / "vecnormalize.pkl"
    saved = file.read_bytes()
    assert len(saved) > 1000

    def crash(self: VecNormalize) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(VecNormalize, "__getstate__", crash)
    for save in (evaluation.callback_on_new_best.on_step, lambda: manager.save_trained_model(model)):
        with pytest.raises(OSError, match="no space left"):
            save()
        assert file.read_bytes() == saved


def manager_of(folder: Path, algo: str = "ppo", env_id: str = "CartPole-v1", **kwargs: Any) -> AGDExperimentManager:
    """Manager of a short experiment, whose command line has the settings."""
    arguments = {"eval_freq": -1, "verbose": 0, "device": "cpu", "n_timesteps": 64, "log_interval": -1} | kwargs
    command_line = argparse.Namespace(env_kwargs=None, hyperparams=kwargs.get("hyperparams"))
    return AGDExperimentManager(command_line, algo, env_id, str(folder), **arguments)


@pytest.mark.parametrize(
    ("changes", "gravity"),
    [
        ({"hyperparams": {"env_kwargs": {"g": 1.0}}}, 1.0),
        ({"hyperparams": {"env_kwargs": {"g": 1.0}}, "eval_env_kwargs": {"g": 3.0}}, 3.0),
        ({"hyperparams": {"env_kwargs": {"g": 1.0}}, "env_kwargs": {"g": 2.0}}, 2.0),
        ({"env_kwargs": {"g": 2.0}}, 2.0),
    ],
)
def test_evaluations_are_on_the_task_of_training_unless_another_is_given(
    changes: dict[str, Any], gravity: float, tmp_path: Path
) -> None:
    manager = manager_of(tmp_path, env_id="Pendulum-v1", eval_freq=32, **changes)
    manager.setup_experiment()
    (evaluation,) = manager.callbacks
    assert evaluation.eval_env.get_attr("g") == [gravity]


def test_a_copied_checkpoint_is_trained_on_and_not_resumed(tmp_path: Path) -> None:
    AGDPPO("MlpPolicy", "CartPole-v1", **SMALL).learn(64, ResumableCheckpointCallback(32, str(tmp_path)))
    copy = (tmp_path / "rl_model_64_steps.zip").rename(tmp_path / "my_agent.zip")
    small = {name: value for name, value in SMALL.items() if name not in ("device", "seed")} | {"n_envs": 1}
    manager = manager_of(tmp_path, "agdppo", trained_agent=str(copy), n_timesteps=32, hyperparams=small)
    model, _ = manager.setup_experiment()
    manager.learn(model)
    # It counts from zero, as with any saved agent
    assert model.num_timesteps == 32


def test_what_yaml_cannot_load_back_is_saved_as_text(tmp_path: Path) -> None:
    settings = {"termination_fn": lambda *_: np.zeros(1, bool), "policy_kwargs": {"activation_fn": th.nn.ReLU}}
    manager_of(tmp_path, "agdppo", hyperparams=settings).setup_experiment()
    config, command_line = (
        yaml.unsafe_load((tmp_path / "agdppo" / "CartPole-v1_1" / "CartPole-v1" / file).read_text())
        for file in ("config.yml", "args.yml")
    )
    for saved in (config, command_line["hyperparams"]):
        assert saved["termination_fn"].startswith("<function")
        assert saved["policy_kwargs"] == settings["policy_kwargs"]
    for value in (lambda: 0, threading.Lock()):
        assert readable({"parts": ([value, 1], "text")}) == {"parts": ([repr(value), 1], "text")}


def test_a_task_with_images_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As tasks of Atari are registered
    monkeypatch.setattr(AGDExperimentManager, "is_atari", lambda *_: True)
    with pytest.raises(ValueError, match=r"AGDPPO does not support images: .*agdppo\.yml has no settings for Atari"):
        manager_of(tmp_path, "agdppo", "MountainCar-v0").setup_experiment()

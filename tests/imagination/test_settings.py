"""The settings of AGDPPO and GuidanceCallback: defaults, checks, and changes during training."""

import inspect
import re
from dataclasses import FrozenInstanceError, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environments import SMALL
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import sb3_agd
from sb3_agd import (
    AGDPPO,
    DiffusionWorldModel,
    GuidanceCallback,
)
from sb3_agd.imagination import Settings
from sb3_agd.replication import PolicyScoreActions


def test_every_keyword_argument_is_an_attribute() -> None:
    arguments: dict[str, Any] = {
        "guidance": "eag",
        "guidance_scale": 0.7,
        "guidance_mode": "gradient",
        "n_candidates": 3,
        "horizon": 3,
        "synthetic_ratio": 5.0,
        "real_data_ratio": 0.3,
        "min_advantage_correlation": 0.1,
        "n_denoising_steps": 6,
        "sampler": "ddim",
        "world_model_gradient_steps": 7,
        "world_model_batch_size": 9,
        "world_model_learning_rate": 2e-3,
        "world_model_warmup": 11,
        "buffer_size": 1234,
        "world_model_kwargs": {"network_kwargs": {"width": 8}},
        "termination_fn": lambda observations, actions, next_observations: observations[:, 0] > 1,
    }
    arguments |= {"real_steps_per_update": 100, "policy_data": "imagined", "start_states": "all"}
    arguments["world_model_kwargs"]["network"] = "mlp"
    arguments["action_sampler"] = PolicyScoreActions()
    assert set(arguments) == {each.name for each in fields(Settings)}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **arguments)
    # A copy, which training changes
    assert vars(model.action_sampler) == vars(arguments.pop("action_sampler"))
    for name, value in arguments.items():
        assert getattr(model, name) == value
    assert isinstance(model.world_model, DiffusionWorldModel)


@pytest.mark.parametrize(
    "name, value",
    [
        ("guidance", "sigmoid"),
        ("guidance", 3),
        ("guidance_mode", "particles"),
        ("n_candidates", 1),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("horizon", 0),
        ("horizon", 2.5),
        ("synthetic_ratio", -0.1),
        ("synthetic_ratio", "many"),
        ("synthetic_ratio", lambda progress: -progress),
        ("real_data_ratio", 1.0),
        ("real_data_ratio", -0.1),
        ("real_data_ratio", "0.5"),
        ("min_advantage_correlation", -1.5),
        ("min_advantage_correlation", 1.0),
        ("min_advantage_correlation", float("nan")),
        ("min_advantage_correlation", "0.5"),
        ("n_denoising_steps", 0),
        ("sampler", "euler"),
        ("world_model_gradient_steps", 0),
        ("world_model_batch_size", 0),
        ("world_model_learning_rate", 0.0),
        ("world_model_warmup", -1),
        ("real_steps_per_update", 0),
        ("real_steps_per_update", 2.5),
        ("policy_data", "real"),
        ("policy_data", None),
        ("action_sampler", "score"),
        ("action_sampler", PolicyScoreActions),
        ("start_states", "old"),
        ("buffer_size", 5),
        ("world_model_kwargs", {"hiden": 3}),
        ("termination_fn", "rule"),
        ("rollout_buffer_class", sb3_agd.agdppo.rollout_buffer.RolloutBuffer),
    ],
)
def test_a_wrong_setting_is_refused_at_construction_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        AGDPPO("MlpPolicy", "Pendulum-v1", **{name: value})


@pytest.mark.parametrize("synthetic_ratio", [0, 0.0])
def test_learning_from_imagined_transitions_only_needs_some(synthetic_ratio: float) -> None:
    for algorithm in (partial(AGDPPO, "MlpPolicy", "Pendulum-v1"), GuidanceCallback):
        with pytest.raises(ValueError, match=r'`policy_data="imagined"` needs a `synthetic_ratio` above 0[^\n]*$'):
            algorithm(policy_data="imagined", synthetic_ratio=synthetic_ratio)


@pytest.mark.parametrize(
    "kwargs", [{"network_kwargs": {"widht": 8}}, {"network": "unet"}, {"ema_decay": 1.0}, {"noise_density": "low"}]
)
def test_a_wrong_world_model_argument_is_refused_at_construction_by_name(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}`"):
        AGDPPO("MlpPolicy", "Pendulum-v1", world_model_kwargs=kwargs)


def test_a_setting_that_the_world_model_was_built_with_cannot_change_unnoticed(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    network = {"network_kwargs": {"width": 7}}
    for name, value in {"n_denoising_steps": 3, "buffer_size": 500, "world_model_kwargs": network}.items():
        before = getattr(model, name)
        setattr(model, name, value)
        with pytest.raises(ValueError, match=f"`{name}` was .* when the world model was built"):
            model.learn(64)
        setattr(model, name, before)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu", n_denoising_steps=3)
    assert loaded.learn(64).world_model.n_denoising_steps == 3


def test_a_dictionary_of_arguments_may_be_changed_for_the_next_model(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"network_kwargs": {"width": 8, "depth": 1}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_kwargs": arguments}).learn(32)
    arguments["network_kwargs"]["width"] = 32
    model.learn(32)
    model.save(tmp_path / "model")
    assert AGDPPO.load(tmp_path / "model", device="cpu").world_model_kwargs == {"network_kwargs": {"width": 8, "depth": 1}}


@pytest.mark.parametrize("call", ["learn", "imagine"])
def test_a_change_within_the_dictionary_of_a_model_is_refused(call: str) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(32)
    model.world_model_kwargs["open_loop_length"] = 1
    with pytest.raises(ValueError, match=r"`world_model_kwargs` was .* when the world model was built"):
        model.learn(32) if call == "learn" else model.imagine(model.env.reset())


@pytest.mark.parametrize("kwargs", [5, ["network"], "mlp"])
def test_world_model_arguments_that_are_no_dictionary_are_refused_by_name(kwargs: Any) -> None:
    with pytest.raises(ValueError, match="`world_model_kwargs` must be None or a dictionary"):
        AGDPPO("MlpPolicy", "Pendulum-v1", world_model_kwargs=kwargs)


def test_an_empty_dictionary_of_world_model_arguments_is_none() -> None:
    Settings().check_successor(Settings(world_model_kwargs={}))


def test_numpy_scalars_are_accepted() -> None:
    numbers = {"guidance_scale": np.float32(1), "synthetic_ratio": np.int64(2), "world_model_learning_rate": np.float32(1e-3)}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | numbers).learn(64)
    assert model.rollout_buffer.n_imagined > 0


def test_settings_that_a_callback_changes_take_effect_at_once() -> None:
    class Switch(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 70:
                self.model.synthetic_ratio = 4.0
            return True

        def _on_rollout_end(self) -> None:
            counts.append(self.model.rollout_buffer.n_imagined)

    counts: list[int] = []
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.learn(96, Switch())
    assert counts == [2 * 32, 2 * 32, 4 * 32]
    model.horizon = 2
    with pytest.raises(ValueError, match="`horizon` was 4 when the world model was built"):
        model.learn(32)


@pytest.mark.parametrize("owner", [AGDPPO, GuidanceCallback])
def test_every_setting_is_an_argument_with_the_same_default(owner: Any) -> None:
    arguments = {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()}
    names = [each.name for each in fields(Settings)]
    assert [name for name in arguments if name in names] == names
    assert {name: arguments[name] for name in names} == {each.name: each.default for each in fields(Settings)}


def test_every_setting_is_documented_once_in_its_order() -> None:
    documented = re.findall(r":param (\w+):", str(Settings.__doc__))
    assert documented == [each.name for each in fields(Settings)]
    assert not any(f":param {name}:" in f"{AGDPPO.__doc__}{GuidanceCallback.__doc__}" for name in documented)


def test_settings_cannot_be_assigned() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().horizon = 3  # type: ignore[misc]


def test_a_buffer_size_too_small_for_the_environments_is_refused() -> None:
    with pytest.raises(ValueError, match="`buffer_size` 40 is too small: each of the 8 environments"):
        AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", 8), **SMALL | {"buffer_size": 40})

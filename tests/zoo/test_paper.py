"""The paper's systems as settings."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.suite import Suite
from sb3_agd import AGDPPO, ExponentialAdvantageGuide, RewardGuide, SigmoidAdvantageGuide
from sb3_agd.imagination import ActionSampler, Guide
from sb3_agd.replication import PolicyScoreActions
from sb3_agd.zoo import register
from sb3_agd.zoo.experiment_manager import AGDExperimentManager
from sb3_agd.zoo.settings import HYPERPARAMS, with_objects

TASKS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Reacher-v5"]
GUIDES = {"agd_sag": SigmoidAdvantageGuide, "agd_eag": ExponentialAdvantageGuide, "polygrad": None, "diffuser": RewardGuide}
# So that a training takes a second
TINY = {
    "n_denoising_steps": 2,
    "world_model_warmup": 64,
    "world_model_kwargs": {
        "network": "mlp",
        "network_kwargs": {"width": 16, "depth": 1},
        "noise_density": "uniform",
        "terminations": "denoised",
    },
    "world_model_gradient_steps": 1,
    "world_model_batch_size": 16,
    "n_steps": 16,
    "real_steps_per_update": 16,
    "synthetic_ratio": 10,
    "batch_size": 160,
    "buffer_size": 1000,
}
register()


def make_model(config: str, task: str, folder: Path, **changes: Any) -> AGDPPO:
    arguments = {"eval_freq": -1, "verbose": 0, "device": "cpu", "seed": 0, "hyperparams": changes, "config": config}
    experiment = AGDExperimentManager(argparse.Namespace(), "agdppo", task, str(folder), **arguments).setup_experiment()
    assert experiment is not None and isinstance(experiment[0], AGDPPO)
    return experiment[0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("entry", GUIDES)
def test_each_system_of_the_paper_trains(entry: str, task: str, tmp_path: Path) -> None:
    model = make_model(f"paper.yml:{entry}", task, tmp_path, **TINY)
    model.learn(200)
    expected = GUIDES[entry]
    assert model.guidance == "none" if expected is None else type(model.guidance) is expected
    assert isinstance(model.action_sampler, PolicyScoreActions)
    assert model.world_model.is_trained and model.rollout_buffer.n_imagined > 0
    assert (model.world_model.guidance_norm > 0) == (entry != "polygrad")
    model.env.close()


@pytest.mark.parametrize("name", ["paper-laptop", "paper-full"])
def test_the_suites_compare_six_systems_that_differ_in_their_guides_alone(name: str) -> None:
    suite = Suite.load(name)
    assert suite.tasks == TASKS and {variant.n_seeds for variant in suite.variants.values()} == {3}
    assert sorted(suite.variants) == sorted([*GUIDES, "ppo", "trpo"])
    for task in TASKS:
        settings = [run.hyperparameters for run in suite.runs() if run.name in GUIDES and run.task == task]
        without_guide = [
            {key: value for key, value in each.items() if key not in ("guidance", "guidance_scale")} for each in settings
        ]
        assert all(each == without_guide[0] for each in without_guide)


def test_the_paper_s_size_is_that_of_its_code() -> None:
    entries = yaml.safe_load((HYPERPARAMS / "paper.yml").read_text())
    for entry in (entries[name] for name in GUIDES):
        assert list(entry) == TASKS
        for settings in entry.values():
            # 512 segments of 10 transitions for each update, and one update of the world model per step
            assert settings["synthetic_ratio"] * settings["n_steps"] == settings["batch_size"] == 512 * settings["horizon"]
            assert settings["world_model_gradient_steps"] == settings["n_steps"] == 4
            assert settings["world_model_kwargs"]["network_kwargs"] == {"width": 1024, "depth": 6}
            assert settings["world_model_kwargs"]["terminations"] == "denoised"


def test_the_noisy_pendulum_is_trained_on_with_each_guide(tmp_path: Path) -> None:
    suite = Suite.load("noisy-pendulum")
    small = {"world_model_warmup": 64, "world_model_gradient_steps": 1, "n_steps": 64, "real_steps_per_update": 64}
    for number, variant in enumerate(suite.variants.values()):
        changes = small | {"synthetic_ratio": 2.0, "batch_size": 64} | variant.settings
        model = make_model(variant.source, "NoisyPendulum-v0", tmp_path / str(number), **changes)
        model.learn(128)
        assert (model.rollout_buffer.n_imagined > 0) == (variant.settings.get("synthetic_ratio") != 0)


def test_an_unknown_entry_of_a_file_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"paper.yml has no entry 'agd', only polygrad, .*, noisy_pendulum"):
        make_model("paper.yml:agd", "Hopper-v5", tmp_path)


def test_settings_may_name_classes_with_their_arguments() -> None:
    guide = {"sb3_agd.RewardGuide": {"critic_trust": False}}
    built = with_objects({"guidance": guide, "action_sampler": {"sb3_agd.replication.PolicyScoreActions": None}, "gamma": 0.9})
    assert isinstance(built["guidance"], Guide) and not built["guidance"].critic_trust
    assert isinstance(built["action_sampler"], ActionSampler) and built["gamma"] == 0.9
    assert with_objects({"guidance": "sag"}) == {"guidance": "sag"}
    with pytest.raises(ValueError, match="`guidance` must be one class with its arguments"):
        with_objects({"guidance": {"weight": "sigma4", "last_state": False}})


@pytest.mark.parametrize(
    ("guide", "complaint"),
    [
        ({"sb3_agd.RewardGuid": {}}, "'RewardGuid'"),
        ({"nowhere.RewardGuide": {}}, "No module named 'nowhere'"),
        ({"RewardGuide": {}}, "Empty module name"),
        ({"sb3_agd.RewardGuide": {"critic_trus": False}}, "unexpected keyword argument 'critic_trus'"),
        ({"sb3_agd.RewardGuide": 3}, "must be a mapping"),
    ],
)
def test_a_wrong_class_in_settings_is_answered_with_the_setting(guide: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"`guidance` names .*: .*{complaint}"):
        with_objects({"guidance": guide})

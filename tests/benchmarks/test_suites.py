"""Benchmark suites: what is run, with which settings."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environments import ToyEnv
from gymnasium.spaces import Box, Dict
from small_suite import SMALL
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from benchmarks import suite
from benchmarks.evaluation import TimedEvaluation
from benchmarks.settings import algorithm_arguments
from benchmarks.suite import SUITES, Suite
from sb3_agd import AGDPPO


def test_any_part_of_a_suite_is_balanced(suite_file: Path) -> None:
    names = [str(one) for one in Suite.load(str(suite_file)).runs()]
    assert names == [
        "ppo-HalfCheetah-v5-3",
        "agdppo_eag-HalfCheetah-v5-3",
        "ppo-Hopper-v5-3",
        "agdppo_eag-Hopper-v5-3",
        "ppo-HalfCheetah-v5-4",
        "ppo-Hopper-v5-4",
    ]


def test_a_variant_may_have_seeds_of_its_own(suite_file: Path) -> None:
    suite_file.write_text(SMALL.replace("n_seeds: 1", "n_seeds: 1, first_seed: 7"))
    seeds = {one.name: one.seed for one in Suite.load(str(suite_file)).runs() if one.variant.n_seeds == 1}
    assert seeds == {"agdppo_eag": 7}


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yml")))
def test_shipped_suites_are_valid(name: str) -> None:
    for one in Suite.load(name).runs():
        assert one.hyperparameters["policy"] == "MlpPolicy"
        assert one.variant.settings.items() <= one.hyperparameters.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("algorithm: ppo", "algorithm: pbo"), "'ppo'.*pbo.yml"),
        (("Hopper-v5", "Hoper-v5"), "ppo.yml has no settings for Hoper-v5"),
        (("eval_freq", "eval_frequency"), "not a suite.*eval_frequency"),
        (("n_seeds: 1", "seeds: 1"), "not a suite.*seeds"),
        (("guidance: eag", "guidence: eag"), "'agdppo_eag' has unknown settings guidence"),
        (("variants:", "variants"), "not a suite"),
        (("eval_freq: 100", "eval_freq: 300"), "`eval_freq` must be between 1 and 200, the number of steps, not 300"),
        (("eval_freq: 100", "eval_freq: 0"), "`eval_freq` must be between 1 and 200, the number of steps, not 0"),
        (("eval_freq: 100", "eval_freq: often"), "not a suite"),
    ],
)
def test_mistakes_in_a_suite_are_named(suite_file: Path, change: tuple[str, str], message: str) -> None:
    suite_file.write_text(SMALL.replace(*change))
    with pytest.raises(ValueError, match=message):
        Suite.load(str(suite_file))


def test_unknown_suite_is_answered_with_the_known_ones() -> None:
    known = ", ".join(sorted(file.stem for file in SUITES.glob("*.yml")))
    assert "mujoco-100k" in known
    with pytest.raises(ValueError, match=f"no suite 'mujocco': give a file, or one of {known}$"):
        Suite.load("mujocco")


def test_a_suite_may_be_like_one_that_is_like_another(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "SUITES", tmp_path)
    (tmp_path / "longer.yml").write_text("like: small\nsteps: 400")
    (tmp_path / "seeds.yml").write_text("like: longer\nfirst_seed: 8")
    loaded = Suite.load("seeds")
    assert (loaded.name, loaded.steps, loaded.first_seed, loaded.eval_freq) == ("seeds", 400, 8, 100)
    suite_file.write_text("like: seeds")
    with pytest.raises(ValueError, match=r"small\.yml is not a suite: maximum recursion depth"):
        Suite.load("small")


def test_runs_with_other_seeds_share_no_episodes_of_their_evaluations(tmp_path: Path) -> None:
    states = []
    for seed in range(2):
        evaluation = TimedEvaluation("Reacher-v5", seed, 100, 10, tmp_path / "evaluations.csv")
        states += list(evaluation.eval_env.reset())
    states += list(make_vec_env("Reacher-v5", 10, seed=0).reset())
    assert len(np.unique(states, axis=0)) == 30


@pytest.mark.parametrize(
    "arguments", [{"clip_obs": 0.1, "epsilon": 0.5}, {"norm_obs": False}, {"norm_obs_keys": ["position"]}]
)
def test_evaluations_normalise_as_training_does(arguments: dict[str, Any], tmp_path: Path) -> None:
    spaces = {name: Box(-1, 1, (2,)) for name in ("position", "velocity")}
    make_env = partial(ToyEnv, Dict(spaces))
    env = VecNormalize(make_vec_env(make_env, seed=0), **arguments)
    evaluation = TimedEvaluation(make_env, 0, 100, 1, tmp_path / "evaluations.csv")
    evaluation.init_callback(PPO("MultiInputPolicy", env))
    assert isinstance(evaluation.eval_env, VecNormalize)
    env.reset()
    sync_envs_normalization(env, evaluation.eval_env)
    observation = {name: np.full(2, 100.0) for name in spaces}
    expected, seen = env.normalize_obs(observation), evaluation.eval_env.normalize_obs(observation)
    assert all(np.array_equal(seen[name], expected[name]) for name in spaces)


@pytest.mark.parametrize("name", ["mujoco-defaults", "classic-defaults"])
def test_the_suites_of_defaults_have_those_of_the_classes(name: str) -> None:
    for each in Suite.load(name).runs():
        parameters = inspect.signature({"ppo": PPO, "agdppo": AGDPPO}[each.variant.algorithm]).parameters
        arguments = algorithm_arguments(each.hyperparameters)
        assert arguments.pop("policy") == "MlpPolicy"
        assert arguments == {name: parameters[name].default for name in arguments}
        assert "normalize" not in each.hyperparameters

"""VecNormalize between the environments and the agent."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import SMALL, ToyEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.experience.vec_normalize import normalizing_wrapper, without_passive_wrappers


def make_env() -> VecEnv:
    return DummyVecEnv([ToyEnv])


def test_passive_wrappers_around_vec_normalize_are_skipped() -> None:
    normalize = VecNormalize(make_env())
    assert without_passive_wrappers(VecMonitor(VecMonitor(normalize))) is normalize
    assert normalizing_wrapper(VecMonitor(normalize)) is normalize


def test_vec_normalize_within_another_wrapper_does_not_count() -> None:
    stacked = VecFrameStack(VecNormalize(make_env()), 2)
    assert without_passive_wrappers(stacked) is stacked
    assert normalizing_wrapper(stacked) is None
    assert normalizing_wrapper(make_env()) is None
    assert normalizing_wrapper(None) is None


def saved_agent(folder: Path, statistics: str | None) -> Path:
    """
    :param folder: Where to save it
    :param statistics: Name of the file of its statistics, ``None`` for none
    :return: Path to an agent that was trained with VecNormalize
    """
    env = VecNormalize(make_env())
    AGDPPO("MlpPolicy", env, **SMALL).learn(64).save(folder / "rl_model_64_steps")
    if statistics is not None:
        (folder / statistics).parent.mkdir(exist_ok=True)
        env.save(folder / statistics)
    return folder / "rl_model_64_steps"


@pytest.mark.parametrize(
    "statistics", ["rl_model_vecnormalize_64_steps.pkl", "vecnormalize.pkl", "Toy-v0/vecnormalize.pkl", None], ids=str
)
def test_a_warning_names_the_statistics_that_an_agent_is_loaded_without(statistics: str | None, tmp_path: Path) -> None:
    path = saved_agent(tmp_path, statistics)
    file = "the file that `VecNormalize.save` wrote" if statistics is None else str(tmp_path / statistics)
    with pytest.warns(UserWarning, match="trained with VecNormalize.*`VecNormalize.load`") as caught:
        AGDPPO.load(path, make_env())
    messages = [str(each.message) for each in caught if "trained with VecNormalize" in str(each.message)]
    assert len(messages) == 1 and file in messages[0]


def load_without_env(path: Path) -> AGDPPO:
    return AGDPPO.load(path)


def load_with_statistics(path: Path) -> AGDPPO:
    return AGDPPO.load(path, VecNormalize.load(str(path.parent / "vecnormalize.pkl"), make_env()))


@pytest.mark.parametrize("load", [load_without_env, load_with_statistics])
def test_no_warning_is_given_with_the_statistics_or_without_an_environment(
    load: Callable[[Path], AGDPPO], tmp_path: Path
) -> None:
    path = saved_agent(tmp_path, "vecnormalize.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)


def test_no_warning_is_given_if_the_agent_was_trained_without(tmp_path: Path) -> None:
    AGDPPO("MlpPolicy", make_env(), **SMALL).learn(64).save(tmp_path / "agent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AGDPPO.load(tmp_path / "agent", make_env())

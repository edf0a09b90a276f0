"""Files are written where and as SB3 writes them, and replaced only once the new ones are complete."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from environments import SMALL, ToyEnv
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.checkpoint.save_util import replaced_file, save_vec_normalize

ALGORITHMS: dict[str, Callable[[], BaseAlgorithm]] = {
    "PPO": lambda: PPO("MlpPolicy", ToyEnv(), device="cpu"),
    "AGDPPO": lambda: AGDPPO("MlpPolicy", ToyEnv(), **SMALL),
}
as_both = pytest.mark.parametrize("algorithm", ["PPO", "AGDPPO"])


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@as_both
def test_an_agent_with_the_name_of_a_folder_is_saved_beside_it(algorithm: str, tmp_path: Path) -> None:
    for name in ("exp_v1.0", "exp_v1.0_2"):
        (tmp_path / name).mkdir()
    with pytest.warns(UserWarning, match=r"exp_v1.0' is a folder. Will save instead to .*exp_v1.0_2"):
        ALGORITHMS[algorithm]().save(tmp_path / "exp_v1.0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp_v1.0", "exp_v1.0_2", "exp_v1.0_2_2"]
    type(ALGORITHMS[algorithm]()).load(tmp_path / "exp_v1.0_2_2", device="cpu")


@as_both
@pytest.mark.parametrize("length", [245, 251])
def test_names_may_have_the_length_that_the_file_system_allows(algorithm: str, length: int, tmp_path: Path) -> None:
    ALGORITHMS[algorithm]().save(tmp_path / ("n" * length))
    assert [path.name for path in tmp_path.iterdir()] == ["n" * length + ".zip"]


@as_both
def test_a_new_file_has_the_mode_of_the_umask(algorithm: str, tmp_path: Path, usual_umask: None) -> None:
    ALGORITHMS[algorithm]().save(tmp_path / "agent")
    assert mode(tmp_path / "agent.zip") == 0o640


@as_both
def test_a_replaced_file_keeps_its_mode(algorithm: str, tmp_path: Path, usual_umask: None) -> None:
    agent = ALGORITHMS[algorithm]()
    agent.save(tmp_path / "agent")
    (tmp_path / "agent.zip").chmod(0o664)
    agent.save(tmp_path / "agent")
    assert mode(tmp_path / "agent.zip") == 0o664


def test_a_named_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.zip"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with replaced_file(pipe, suffix="zip") as file:
            file.write(b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "agent.zip"
    path.write_bytes(b"before")
    # Permissions do not bind the superuser, who may run the tests
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="nothing was saved"), replaced_file(path, "zip") as file:
        file.write(b"after")
    assert path.read_bytes() == b"before"


def test_a_failed_save_leaves_the_existing_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    path.write_bytes(b"before")
    with (
        pytest.raises(OSError, match="nothing was saved; the file that was there is intact"),
        replaced_file(path, "zip") as file,
    ):
        file.write(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_crash_while_saving_statistics_keeps_those_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(DummyVecEnv([ToyEnv]))
    save_vec_normalize(env, tmp_path / "vecnormalize.pkl")
    before = (tmp_path / "vecnormalize.pkl").read_bytes()
    monkeypatch.setattr("pickle.dump", full_disk)
    with pytest.raises(OSError, match="No space left on device: nothing was saved; the file that was there is intact"):
        save_vec_normalize(env, tmp_path / "vecnormalize.pkl")
    assert (tmp_path / "vecnormalize.pkl").read_bytes() == before

"""Files of agents: replaced atomically, and read with clear errors."""

import errno
import io
import os
import pickle
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

# Changes whenever a file can no longer be read by earlier versions of this package
FILE_FORMAT = 1


def writing_path(path: str | Path, suffix: str) -> Path:
    """
    :param path: Path to a file that is about to be written
    :param suffix: Ending that the name gets if it has none
    :return: Path that SB3 would write to: beside a folder of that name. The target of a symbolic link, not the link
    """
    target = Path(path)
    if target.suffix == "":
        target = target.with_name(f"{target.name}.{suffix}")
    while target.is_dir():
        warnings.warn(f"Path '{target}' is a folder. Will save instead to {target}_2", stacklevel=2)
        target = target.with_name(f"{target.name}_2")
    return target.resolve()


@contextmanager
def replaced_file(path: str | Path | io.BufferedIOBase, suffix: str) -> Iterator[IO[bytes]]:
    """
    Open a file for writing that replaces the one of that name only once it is complete and on the disk. It keeps the mode of
    that one. Missing folders are created.

    :param path: Path to the file, see :func:`writing_path`, or an open file, which is written to as it is
    :param suffix: Ending that the name gets if it has none
    :return: The open file
    :raises OSError: If it cannot be written, because the disk is full for example; a file that was there is intact then
    """
    if not isinstance(path, (str, Path)):
        yield cast(IO[bytes], path)
        return
    target = writing_path(path, suffix)
    if target.exists() and not target.is_file():
        # Pipes and devices are written to
        with target.open("wb") as file:
            yield file
        return
    # In the same folder, because renaming is only atomic within one file system. The name is short, whatever that of the file
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        kept = "; the file that was there is intact" if target.exists() else ""
        raise OSError(error.errno, f"{error.strerror or error}: nothing was saved{kept}", str(target)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_vec_normalize(env: VecNormalize, save_path: str | Path) -> None:
    """
    ``VecNormalize.save``, which keeps the existing file until the new one is complete.

    :param env: The wrapper
    :param save_path: Path to the file
    :raises OSError: If it cannot be written
    """
    with replaced_file(save_path, suffix="pkl") as file:
        pickle.dump(env, file)


def statistics_file(path: str | Path) -> Path | None:
    """
    :param path: Path to the file of an agent
    :return: File of the statistics of its VecNormalize, if there is one where callbacks and RL-Zoo save it
    """
    agent = Path(path)
    # Checkpoint callbacks put the kind of the file before the number of steps
    name, steps = agent.stem.removesuffix("_steps").rpartition("_")[::2]
    candidates = [agent.with_name(f"{name}_vecnormalize_{steps}_steps.pkl"), agent.with_name("vecnormalize.pkl")]
    candidates += sorted(agent.parent.glob("*/vecnormalize.pkl"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def newer_format(file_format: int) -> str:
    """
    :param file_format: Format of a file, newer than ``FILE_FORMAT``
    :return: Description of the problem
    """
    return f"it is of format {file_format}, newer than {FILE_FORMAT}, the newest one known here"


def explain_misfit(path: str | Path, error: Exception) -> str:
    """
    :param path: Path to a file that could not be loaded
    :param error: The error that was raised
    :return: Description of the problem
    """
    try:
        content, _, _ = load_from_zip_file(path, device="cpu")
    except Exception:  # Damaged files raise errors of many kinds
        content = None
    if content is None:
        return f"it is damaged or incomplete ({error})"
    if content.get("file_format", 0) > FILE_FORMAT:
        return newer_format(content["file_format"])
    if isinstance(error, KeyError) and "saved_by" in content:
        return f"it was saved by {content['saved_by']}"
    policy = content.get("policy_class")
    if isinstance(policy, type) and not issubclass(policy, ActorCriticPolicy):
        return f"it was saved by another algorithm, whose policy is a {policy.__name__}"
    return str(error)


@contextmanager
def explained_errors(path: str | Path | io.BufferedIOBase, name: str) -> Iterator[None]:
    """
    Turn the many kinds of errors that damaged and foreign files raise into one.

    :param path: Path to a file that is loaded within, or an open file
    :param name: Name of the class that it is loaded as
    :raises OSError: If the file cannot be read
    :raises ValueError: If it is damaged or does not fit
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = explain_misfit(path, error) if isinstance(path, (str, Path)) else str(error)
        raise ValueError(f"{path} cannot be loaded as {name}: {reason}") from error

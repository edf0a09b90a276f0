"""Writing files so that nothing is lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replaced_file(path: str | Path, suffix: str) -> Iterator[IO[bytes]]:
    """
    Open a file for writing that takes its name, and the place of a file that has it already, only once it is complete
    and on the disk. Missing folders are created.

    :param path: Path to the file
    :param suffix: Ending that the name gets if it has none
    :return: The open file
    :raises OSError: If it cannot be written, because the disk is full for example; a file that was there is intact then
    """
    target = Path(path)
    if target.suffix == "":
        target = target.with_name(f"{target.name}.{suffix}")
    # Renaming is only atomic within one file system
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        kept = "; the file that was there is intact" if target.exists() else ""
        raise OSError(error.errno, f"{error.strerror}: nothing was saved{kept}", str(target)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)

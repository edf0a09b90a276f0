"""
``sb3-agd load-from-hub``: an agent's files into a folder of RL-Zoo.

RL-Zoo's own command fails on agents without ``VecNormalize``: it does not know the error with which the present
huggingface_hub says that a file is missing.
"""

import argparse
import shutil
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

from huggingface_hub.errors import EntryNotFoundError
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId, load_from_hub
from rl_zoo3 import get_latest_run_id

from sb3_agd.hub.push_to_hub import CARD_FILE, METRICS, SETTINGS, STATISTICS


def download(repo_id: ModelRepoId, name: ModelName) -> Path:
    """
    :param repo_id: Name of the repository, with the organization
    :param name: Name of the agent
    :return: Folder of its files, in the cache of huggingface_hub
    :raises ValueError: If the environment variable ``TRUST_REMOTE_CODE`` is not ``True``
    :raises OSError: If there is no such agent
    """
    print(f"Downloading {repo_id}")
    for file in (*SETTINGS, METRICS):
        load_from_hub(repo_id, file)
    for file in (STATISTICS, CARD_FILE):
        with suppress(EntryNotFoundError):
            load_from_hub(repo_id, file)
    return Path(load_from_hub(repo_id, name.filename)).parent


def run(arguments: argparse.Namespace) -> None:
    """
    Copy an agent to where ``enjoy`` finds it.

    :param arguments: Command line, see :func:`sb3_agd.zoo.parsers.add_load_arguments`
    :raises ValueError: If its place is taken, or cannot be
    :raises OSError: If there is no such agent, or a file of it is missing
    """
    if arguments.exp_id < 0:
        raise ValueError("argument --exp-id: must be 0 for a new run, or the number of one")
    env_name = EnvironmentName(arguments.env)
    name = ModelName(arguments.algo, env_name)
    source = arguments.local or download(ModelRepoId(arguments.organization, arguments.repo_name or name), name)
    runs = Path(arguments.folder) / arguments.algo
    folder = runs / f"{env_name}_{arguments.exp_id or get_latest_run_id(str(runs), env_name) + 1}"
    if folder.exists() and not arguments.force:
        raise ValueError(f"{folder} already exists: replace it by --force, or leave out --exp-id for a new one")
    missing = [file for file in (name.filename, *SETTINGS, METRICS) if not (source / file).is_file()]
    if missing:
        raise FileNotFoundError(f"There is no {', '.join(missing)} in {source}")
    shutil.rmtree(folder, ignore_errors=True)
    settings = folder / env_name
    settings.mkdir(parents=True)
    with ZipFile(source / METRICS) as archive:
        archive.extractall(folder)
    shutil.copy(source / name.filename, folder / f"{env_name}.zip")
    for file in SETTINGS:
        shutil.copy(source / file, settings)
    for file, place in ((STATISTICS, settings / "vecnormalize.pkl"), (CARD_FILE, folder)):
        if (source / file).is_file():
            shutil.copy(source / file, place)
    print(f"Saved to {folder}")

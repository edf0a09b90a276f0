"""Settings files: where they are, the objects that they name, and what is saved of them."""

import re
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3.utils import get_class_by_name

PACKAGE = Path(__file__).parent.parent
# In the wheel the folder lies inside the package, in a source tree beside it
HYPERPARAMS = next(folder for folder in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams") if folder.is_dir())
# Arguments of AGDPPO that may be objects
OBJECTS = {"guidance", "action_sampler"}
ENTRY_OF_FILE = re.compile(r"(?P<file>.+\.ya?ml):(?P<entry>.*)")


def split_config(config: str) -> tuple[str, str | None]:
    """
    :param config: What the user gave as ``-conf``: a file, or ``FILE.yml:ENTRY`` for one of several sets of settings in it
    :return: The file and the entry, ``None`` for the whole file
    """
    match = ENTRY_OF_FILE.fullmatch(config)
    return (config, None) if match is None else (match["file"], match["entry"])


def with_objects(settings: dict[str, Any]) -> dict[str, Any]:
    """
    :param settings: Settings of a file. Those in :data:`OBJECTS` may name a class as the zoo's wrappers do,
        ``{name: arguments}``
    :return: The same with instances of these classes
    :raises ValueError: If such a setting is a dictionary of anything but one class, or that cannot be made
    """
    built = {}
    for name in OBJECTS & settings.keys():
        value = settings[name]
        if isinstance(value, dict):
            if len(value) != 1:
                raise ValueError(f"`{name}` must be one class with its arguments, {{name: arguments}}, not {value}")
            ((class_name, arguments),) = value.items()
            try:
                built[name] = get_class_by_name(class_name)(**(arguments or {}))
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"`{name}` names {class_name}, which cannot be made: {error}") from error
    return settings | built


def readable(value: Any) -> Any:
    """
    :param value: Settings, or a part of them
    :return: The same with text in place of what yaml cannot load back, such as functions without a name
    """
    if type(value) is dict:
        return {key: readable(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(readable, value))
    try:
        yaml.unsafe_load(yaml.dump(value))
    except Exception:  # Objects decide themselves how they are copied
        return repr(value)
    return value


def read_saved(file: Path) -> dict[str, Any]:
    """
    :param file: What the zoo saved beside an agent: ``args.yml``, the command line of its training, or ``config.yml``
    :return: The content. What is loaded is no more dangerous than the agent's file, which holds pickles, too
    """
    return dict(yaml.unsafe_load(file.read_text()))


def find_config(config: str | None, algo: str, env_id: str) -> str | None:
    """
    :param config: What the user gave as ``-conf``
    :param algo: Name of the algorithm
    :param env_id: Name of the environment
    :return: The user's own choice if there is one, where the bare name of a shipped file is enough; otherwise the
        shipped file for the algorithm if it covers the environment; ``None`` for the zoo's file
    """
    if config is not None:
        name, entry = split_config(config)
        shipped = HYPERPARAMS / name
        file = str(shipped) if not Path(name).exists() and shipped.is_file() else name
        return file if entry is None else f"{file}:{entry}"
    own = HYPERPARAMS / f"{algo}.yml"
    if not own.is_file():
        return None
    entries = yaml.safe_load(own.read_text())
    return str(own) if env_id in entries or "default" in entries else None

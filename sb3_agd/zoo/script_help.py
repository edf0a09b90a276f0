"""``--help`` of RL-Zoo's scripts, read from their source: importing them takes seconds."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sb3_agd.zoo.parsers import CommandParser

# What shows in the help of an option
SHOWN = ("action", "choices", "help", "metavar", "nargs", "required")


def read(module: str) -> ast.Module:
    """
    :param module: Module of RL-Zoo
    :return: Its source, which is not run
    :raises ModuleNotFoundError: If RL-Zoo is not installed
    """
    zoo = find_spec("rl_zoo3")
    if zoo is None or zoo.origin is None:
        raise ModuleNotFoundError("No module named 'rl_zoo3'", name="rl_zoo3")
    return ast.parse(Path(zoo.origin).parent.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text())


def algorithms() -> list[str]:
    """
    :return: Names of the algorithms that RL-Zoo knows once AGDPPO has been registered
    """
    assignments = [node for node in read("rl_zoo3.utils").body if isinstance(node, ast.AnnAssign)]
    registries = [node.value for node in assignments if ast.unparse(node.target) == "ALGOS"]
    names = [name for registry in registries if isinstance(registry, ast.Dict) for name in registry.keys if name is not None]
    return [*map(ast.literal_eval, names), "agdppo"]


def shown(keyword: ast.keyword) -> Any:
    """
    :param keyword: Keyword argument of an option
    :return: Its value as far as it matters for the help, ``None`` if it does not
    """
    if ast.unparse(keyword.value) == "list(ALGOS.keys())":
        return algorithms()
    # Actions of the zoo's own store values, as the default action does
    return ast.literal_eval(keyword.value) if isinstance(keyword.value, (ast.Constant, ast.List)) else None


def print_help(prog: str, description: str, module: str) -> None:
    """
    Print the options of a script, and end the process as ``--help`` does.

    :param prog: Name of the command
    :param description: What it does
    :param module: Script of RL-Zoo
    :raises ModuleNotFoundError: If RL-Zoo is not installed
    """
    parser = CommandParser(prog=prog, description=description)
    calls = [node for node in ast.walk(read(module)) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: call.lineno):
        if ast.unparse(call.func) == "parser.add_argument":
            settings = {str(word.arg): shown(word) for word in call.keywords if word.arg in SHOWN}
            names = [ast.literal_eval(name) for name in call.args]
            parser.add_argument(*names, **{name: value for name, value in settings.items() if value is not None})
    parser.parse_args(["--help"])

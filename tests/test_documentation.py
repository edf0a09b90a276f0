"""
The code, the commands and the names in README.md and docs/*.md, and the experiments that docs/lessons.md is about.

- Python blocks run, those of a page one after the other in one namespace, with short trainings.
- Commands are parsed by the command's own parser. As written, they would take hours, a screen or a cluster.
- Those of RL-Zoo in docs/rl_zoo.md also run at small size, one after the other in one folder, and so does
  `benchmarks.compare`. What is left out there (tuning, videos, the last plot, suites, Ray) runs at small size in
  the tests of these folders, and the examples in test_examples.py.
- Commands of pip and make are not run, since they would build an environment: extras, files and targets must exist.
"""

import argparse
import ast
import csv
import pydoc
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import cli as ray_cli
from test_structure import ROOMS

import sb3_agd
from benchmarks.suite import Suite
from sb3_agd.imagination import Settings
from sb3_agd.zoo.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
EXPERIMENTS = ROOT / "benchmarks" / "experiments.csv"
COLUMNS = ["change", "task", "seed", "step", "return", "std", "commit", "verdict"]
VERDICTS = {"shipped", "kept out", "dropped", "unclear", "diagnostic", "baseline"}
each_text = pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Number of the first line and text of each block."""
    text = page.read_text()
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in BLOCK.finditer(text) if match[1] == language]


def commands(page: Path) -> list[list[str]]:
    """Words of each command, without comments and leading assignments of variables."""
    scripts = [block.replace("\\\n", " ") for _, block in blocks(page, "bash")]
    lines = [shlex.split(line, comments=True) for script in scripts for line in script.splitlines()]
    return [words[1:] if re.fullmatch(r"[A-Z_]+=.*", words[0]) else words for words in lines if words]


def test_pages_of_other_projects_are_linked_from_names_that_exist() -> None:
    outside = runpy.run_path(str(ROOT / "docs" / "conf.py"))["OUTSIDE"]
    assert [name for name in outside if pydoc.locate(name) is None] == []


@each_text
def test_no_gap_was_left_to_be_filled_in(page: Path) -> None:
    assert not re.search(r"@@|TODO|FIXME", page.read_text())


@each_text
def test_lines_of_prose_fit_on_a_screen(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text()).splitlines()
    assert [line for line in prose if len(line) > 140 and not line.lstrip().startswith(("|", "!["))] == []


@each_text
def test_rows_of_tables_are_short(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if line.lstrip().startswith("|") and len(line.split()) > 60] == []


def defined_names(file: Path) -> set[str]:
    """Functions, classes, their methods and fields, and constants of a module."""

    def names(nodes: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                yield from (prefix + node.name, *names(node.body, f"{prefix}{node.name}."))
            elif isinstance(node, ast.FunctionDef):
                yield prefix + node.name
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (prefix + name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))

    return set(names(ast.parse(file.read_text()).body, ""))


ARCHITECTURE = ROOT / "docs" / "architecture.md"
# Words in code font, in rows of tables that name functions, classes and constants and, last, the files that these are in
ROWS = [re.findall(r"`([^`]+)`", row) for row in ARCHITECTURE.read_text().splitlines() if re.match(r"\|.*/", row)]
NAME = re.compile(r"([A-Za-z_][\w.]*)\(\)|([A-Z][\w.]*)")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_names_of_the_architecture_are_in_their_files(row: list[str]) -> None:
    folders = [ROOT, Path(sysconfig.get_path("purelib"))]
    paths = [word for word in row if re.fullmatch(r"[\w/]+\.(py|yml)", word)]
    files = [next((folder / path for folder in folders if (folder / path).is_file()), None) for path in paths]
    assert paths and None not in files
    defined = {name for file in files if file is not None and file.suffix == ".py" for name in defined_names(file)}
    named = {match[1] or match[2] for word in row if (match := NAME.fullmatch(word))}
    assert named - defined == set()


def test_picture_of_the_architecture_shows_all_rooms() -> None:
    ((_, picture),) = blocks(ARCHITECTURE, "text")
    lines = re.findall(r"^  (\w+) {2,}\S.* {2,}(\S.*)$", picture, re.MULTILINE)[1:]
    assert [room for room, _ in lines] == ROOMS[::-1]
    for room, names in lines:
        defined = {name for file in (ROOT / "sb3_agd" / room).glob("*.py") for name in defined_names(file)}
        assert set(names.split(", ")) - defined == set()


def test_api_page_documents_all_public_names() -> None:
    documented = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", "".join(page.read_text() for page in PAGES), re.MULTILINE)
    names = {name.rpartition(".")[2] for name in documented}
    assert set(sb3_agd.__all__) - names == {"__version__"}


def test_table_of_settings_has_all_of_them_with_their_defaults() -> None:
    text = (ROOT / "docs" / "agdppo.md").read_text()
    table = text[text.index("| argument | default |") :].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    defaults = {name: ast.literal_eval(default.strip("`").replace(",", "")) for name, default in rows.items()}
    assert defaults == {each.name: each.default for each in fields(Settings)}


@pytest.fixture(scope="module")
def experiments() -> list[dict[str, str]]:
    with EXPERIMENTS.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_experiments_have_known_verdicts(experiments: list[dict[str, str]]) -> None:
    assert {row["verdict"] for row in experiments} == VERDICTS
    for row in experiments:
        assert (row["verdict"] == "baseline") == row["change"].startswith("baseline: "), row


@pytest.mark.parametrize(
    "column, pattern",
    [
        ("task", r"[A-Z]\w+-v\d"),
        ("seed", r"\d*|fresh"),
        ("step", r"[1-9]\d*"),
        ("return", r"-?\d+(\.\d+)?"),
        ("std", r"(\d+(\.\d+)?)?"),
        ("commit", r"([0-9a-f]{7})?"),
    ],
)
def test_columns_of_experiments_are_well_formed(experiments: list[dict[str, str]], column: str, pattern: str) -> None:
    assert [row for row in experiments if not re.fullmatch(pattern, row[column])] == []


def test_each_reading_of_a_change_is_given_once(experiments: list[dict[str, str]]) -> None:
    readings = [tuple(row[column] for column in ("change", "task", "seed", "step")) for row in experiments]
    assert [reading for reading, count in Counter(readings).items() if count > 1] == []


def test_verdict_on_a_change_is_the_same_in_all_lines_of_a_task(experiments: list[dict[str, str]]) -> None:
    verdicts: dict[tuple[str, str], set[str]] = {}
    for row in experiments:
        verdicts.setdefault((row["change"], row["task"]), set()).add(row["verdict"])
    assert [change for change, given in verdicts.items() if len(given) > 1] == []


def test_lessons_name_the_changes_of_the_experiments(experiments: list[dict[str, str]]) -> None:
    text = re.sub(r"`[^`]*`", "", (ROOT / "docs" / "lessons.md").read_text())
    quoted = {" ".join(name.split()) for name in re.findall(r'"([^"]*)"', text)}
    # A name that ends in dots stands for all that begin with it
    patterns = {name: re.escape(name.removesuffix("...").rstrip()) + (".+" if name.endswith("...") else "") for name in quoted}
    changes = {row["change"] for row in experiments}
    named = {name: {change for change in changes if re.fullmatch(pattern, change)} for name, pattern in patterns.items()}
    assert [name for name, found in named.items() if not found] == []
    # What a change is compared with follows it in the file and need not be named
    assert {change for change in changes.difference(*named.values()) if not change.startswith("baseline: ")} == set()


@each_page
@pytest.mark.usefixtures("short_training")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for line, block in blocks(page, "python"):
        # Tracebacks show the lines of the page
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


def parse_only(words: list[str], run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program up to the point where its command line is parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        parsed = parse(parser, *args, **kwargs)
        # The parser that finds RL-Zoo's command is followed by the command's own
        if parser.prog != "sb3-agd":
            raise SystemExit(0)
        return parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            run()
    assert end.value.code == 0, shlex.join(words)


@each_page
def test_commands_are_valid(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    setup = Path("setup.py").read_text()
    for words in commands(page):
        match words:
            case ["pip", "install", "-c", "constraints.txt", *_, target]:
                extras = re.fullmatch(r"torch|\.(?:\[(.+)\])?", target)
                assert extras is not None, words
                assert all(f'"{extra}":' in setup for extra in (extras[1] or "mujoco").split(",")), words
            case ["make", target]:
                subprocess.run(["make", "--dry-run", target], check=True, capture_output=True)
            case ["ray", command, *arguments]:
                ray_cli.commands[command].make_context(command, arguments)
            case ["sb3-agd", *_]:
                parse_only(words, main, monkeypatch)
            case ["python", "-m", module, *arguments]:
                if module == "benchmarks.run":
                    Suite.load(arguments[0])
                parse_only([module, *arguments], lambda: runpy.run_module(module, run_name="__main__"), monkeypatch)
            case ["python", script, *arguments]:
                parse_only([script, *arguments], lambda: runpy.run_path(script, run_name="__main__"), monkeypatch)
            case _:
                raise AssertionError(f"{page.name} has a command that no test knows: {shlex.join(words)}")


# Appended to the page's commands, in this order. The last of two equal options counts
AGDPPO = "n_steps:32 batch_size:32 n_epochs:1 synthetic_ratio:1 horizon:2 world_model_warmup:0 world_model_gradient_steps:2"
# The zoo's all-plots cannot read a single run with a single episode
TRAIN = "-n 64 --eval-freq 32 --eval-episodes 2 --verbose 0 --device cpu"
SESSION = [
    ("train --algo agdppo --env HalfCheetah-v5 -n 100000", f"{TRAIN} --save-freq 32 -params {AGDPPO}"),
    ("train --algo agdppo --env HalfCheetah-v5 -f further -i", f"{TRAIN} -params {AGDPPO}"),
    ("enjoy", "-n 50 --no-render"),
    ("train --algo ppo", f"{TRAIN} -params n_steps:32"),
    ("all-plots", "-e HalfCheetah-v5 --no-display"),
]


def test_session_with_rl_zoo_runs(
    command_line: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    written = [shlex.join(words[1:]) for words in commands(ROOT / "docs" / "rl_zoo.md") if words[0] == "sb3-agd"]
    for beginning, small in SESSION:
        (command,) = (command for command in written if command.startswith(beginning))
        command_line(*shlex.split(command), *shlex.split(small))
    assert (tmp_path / "further" / "agdppo" / "HalfCheetah-v5_1" / "HalfCheetah-v5.zip").is_file()
    assert (tmp_path / "results.pkl").is_file()


@pytest.mark.usefixtures("short_training")
def test_comparison_with_ppo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (written,) = (words[1:] for words in commands(ROOT / "docs" / "agdppo.md") if "benchmarks.compare" in words)
    small = ["--steps", "256", "--eval-freq", "256", "--eval-episodes", "1", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*written[1:], *small])
    runpy.run_module(written[1], run_name="__main__")
    assert "AGDPPO return" in capsys.readouterr().out
    assert (tmp_path / "returns.png").is_file()

"""The files for a package index: they are built without warnings, hold what they should, and stand alone."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# What the package and its tests are made of
FOLDERS = ("benchmarks", "docs", "examples", "hyperparams", "sb3_agd", "tests")
FILES = (
    *("CHANGELOG.md", "CITATION.bib", "CITATION.cff", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("constraints-oldest.txt", "constraints.txt", "pyproject.toml", "setup.py"),
)


@dataclass(frozen=True)
class Built:
    """What was built from a copy of the repository."""

    sources: set[str]
    log: str
    sdist: set[str]
    wheel: set[str]
    metadata: Message


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    sources = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    # Not to write bytecode is worth a warning
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    done = subprocess.run(command, env={**environment, "PYTHONWARNINGS": "always"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with ZipFile(wheel) as archive:
        in_wheel = {*archive.namelist()}
        (metadata,) = (name for name in in_wheel if name.endswith(".dist-info/METADATA"))
        message = email.message_from_bytes(archive.read(metadata))
    return Built(sources, done.stdout + done.stderr, in_sdist, in_wheel, message)


def test_the_build_gives_no_warning(built: Built) -> None:
    assert [line for line in built.log.splitlines() if re.search(r"warning\b|\bno .* found\b", line, re.IGNORECASE)] == []


def test_the_source_distribution_holds_all_that_its_tests_need(built: Built) -> None:
    assert built.sources - built.sdist == set()


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    files = {name for name in built.wheel if ".dist-info/" not in name}
    package = {name for name in built.sources if name.startswith("sb3_agd/")}
    settings = {f"sb3_agd/{name}" for name in built.sources if name.startswith("hyperparams/")}
    assert {"sb3_agd/py.typed", "sb3_agd/version.txt"} < package and settings
    assert files == package | settings


def test_the_description_has_no_path_into_the_repository(built: Built) -> None:
    text = str(built.metadata.get_payload(decode=True), "utf-8")
    prose = CODE.sub("", text)
    targets = re.findall(r"\]\(([^)\s]*)", prose) + re.findall(r"\b(?:src|href)=\"?([^\"\s>]*)", prose)
    assert "https://arxiv.org/abs/2604.09035" in targets
    assert [target for target in targets if not target.startswith("https://")] == []
    # Nothing else is lost but the captions of images
    readme = (ROOT / "README.md").read_text()
    captions = re.findall(r"^!\[.*\n\n\*([^*]+)\*$", readme, re.MULTILINE)
    assert captions and not any(caption in text for caption in captions)
    lines = {line for line in readme.splitlines() if line.startswith("|")}
    assert len(lines) > 4 and lines <= {*text.splitlines()}
    assert CODE.findall(text) == CODE.findall(readme)
    assert re.findall("^#+ .*", prose, re.MULTILINE) == re.findall("^#+ .*", CODE.sub("", readme), re.MULTILINE)


def test_the_metadata_name_license_keywords_and_links(built: Built) -> None:
    metadata = built.metadata
    assert metadata["License-Expression"] == "MIT"
    assert not any("License ::" in classifier for classifier in metadata.get_all("Classifier", []))
    assert "reinforcement-learning" in metadata["Keywords"].split(",")
    links = dict(link.split(", ") for link in metadata.get_all("Project-URL", []))
    assert links["Paper"] == "https://arxiv.org/abs/2604.09035"


def test_building_replaces_the_package_and_keeps_trained_agents(tmp_path: Path) -> None:
    (tmp_path / "dist" / "agents").mkdir(parents=True)
    agent, package = tmp_path / "dist" / "agents" / "agent.zip", tmp_path / "dist" / "sb3_agd.whl"
    agent.touch()
    package.touch()
    dry = subprocess.run(["make", "--dry-run", "package"], cwd=ROOT, capture_output=True, text=True, check=True)
    for line in dry.stdout.splitlines():
        if line.startswith("rm "):
            subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert agent.exists() and not package.exists()


def test_both_citation_files_say_the_same() -> None:
    entries = re.split(r"^@\w+{(\S+),\n", (ROOT / "CITATION.bib").read_text(), flags=re.MULTILINE)[1:]
    bib = {
        key: dict(re.findall(r"^ *(\w+) *= {(.*)}", entry, re.MULTILINE))
        for key, entry in zip(entries[::2], entries[1::2], strict=True)
    }
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["title"] == bib["sb3_agd"]["title"].replace(r"\_", "_")
    paper = cff["preferred-citation"]
    authors = " and ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    assert bib["agd_mbrl"] == {
        "author": authors,
        "title": paper["title"],
        "journal": paper["journal"],
        "year": str(paper["year"]),
    }

"""The scripts and the notebook of the folder `examples`, run as a user runs them, with short trainings."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
NOTEBOOK = FOLDER / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TIMESTEPS = 1024
LARGEST_NOTEBOOK = 500_000
OUTPUT = {
    "callback_on_trpo": "Updates of the world model: 5",
    "compare_with_ppo": "AGDPPO after 1,024 steps",
    "custom_guide": "Mean imagined speed without",
    "custom_network": "(recurrent): GRU(",
    "drop_in": "Imagined rewards of the next 8 steps",
    "train_in_imagination": "Return of SAC in the real task: -",
}


@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script.name, "--timesteps", str(TIMESTEPS)])
    runpy.run_path(str(script), run_name="__main__")
    assert OUTPUT[script.stem] in capsys.readouterr().out


@pytest.mark.usefixtures("short_training")
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": NOTEBOOK.stem}
    for number, cell in enumerate(CODE, 1):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), namespace)
    out = capsys.readouterr().out
    assert "Segments(4 of horizon 8, 0 ended" in out and out.count("torque") == 8
    assert [len(values) for values in namespace["returns"].values()] == [1, 1]
    assert len(namespace["means"]) == 200
    plt.close("all")


def test_notebook_is_as_it_was_run_and_small() -> None:
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert len(CELLS) <= 20
    assert NOTEBOOK.stat().st_size < LARGEST_NOTEBOOK


def test_notebook_is_installed_as_the_readme_says() -> None:
    (line,) = re.findall("^pip install.*", (FOLDER.parent / "README.md").read_text(), re.MULTILINE)
    # From the folder of the notebook, and with what its figures need
    expected = line.replace("constraints", "../constraints").replace(".[mujoco]", "..[zoo]")
    assert f"%{expected}" in "".join(CODE[0]["source"])


@pytest.mark.parametrize("text", ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"])
def test_notebook_links_to_files(text: str) -> None:
    assert [target for target in re.findall(r"\]\(([^)]*)\)", text) if not (FOLDER / target).is_file()] == []

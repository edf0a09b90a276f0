"""The scripts of the folder `examples`, run as a user runs them."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
TIMESTEPS = 1024
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

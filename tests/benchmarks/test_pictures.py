"""The pictures of imagination, of an agent that has hardly learned, without a renderer."""

import json
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from PIL import Image

from benchmarks import compare, pictures
from benchmarks.settings import load_settings


def short_settings(algorithm: str, env_id: str) -> dict[str, Any]:
    """The shipped settings, with an earlier begin of imagination and shorter updates."""
    return load_settings(algorithm, env_id) | {"world_model_warmup": 256, "n_epochs": 1, "horizon": 2, "synthetic_ratio": 1}


@pytest.mark.usefixtures("short_fits")
def test_an_agent_is_trained_measured_and_animated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = count()

    def render(_: HopperEnv) -> np.ndarray:
        # Real and imagined frames come by turns
        return np.full((40, 40, 3), 40 * (next(moments) % 6), dtype=np.uint8)

    monkeypatch.setattr(HopperEnv, "render", render)
    monkeypatch.setattr(pictures, "obstacle_to_draw", lambda _: None)
    monkeypatch.setattr(pictures, "STEPS_BEFORE", 2)
    monkeypatch.setattr(pictures, "imagination_report", partial(pictures.imagination_report, n_starts=2))
    monkeypatch.setattr(compare, "load_settings", short_settings)
    report = tmp_path / "figures.json"
    arguments = ["--env", "Hopper-v5", "--steps", "512", "--segments", "3", "--folder", str(tmp_path), "--output", str(report)]
    monkeypatch.setattr(sys, "argv", ["pictures", *arguments])
    pictures.main()
    assert json.loads(report.read_text())["timesteps"] == 512
    assert {file.name for file in tmp_path.iterdir()} == {
        *("advantages.png", "dimensions.png", "errors.png", "figures.json", "imagination.webp")
    }
    with Image.open(tmp_path / "imagination.webp") as animation:
        assert animation.size == (2 * pictures.HALF_SIZE, pictures.HALF_SIZE)
        assert animation.n_frames == 3 * 2
        frame = np.asarray(animation.convert("L"), dtype=int)
    # Black left, grey right, a white line between them
    assert frame[-20, 20] < 10 < frame[-20, -20] < 100
    assert frame[-20, pictures.HALF_SIZE] > 150

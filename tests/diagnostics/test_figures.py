"""The plots of a report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sb3_agd.diagnostics.figures import plot_errors


@pytest.mark.parametrize("name", ["errors", "dimensions", "advantages"])
def test_a_plot_is_not_blank(name: str, report: tuple[Path, dict[str, Any]]) -> None:
    pixels = np.asarray(Image.open(report[0] / f"{name}.png").convert("L"))
    assert pixels.shape[1] > 500
    assert (pixels < 128).mean() > 0.005


def test_terminations_are_left_out_if_there_are_none() -> None:
    widths = []
    for rate in (0.0, 0.1):
        errors = {"states": {"unguided": [1.0, 2.0]}, "terminations": {"unguided, real": [rate, rate]}}
        widths.append(plot_errors(errors).get_figwidth())
    assert widths[1] == 2 * widths[0]

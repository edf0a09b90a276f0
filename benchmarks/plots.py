"""Figures that several benchmarks share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Steps, and at each of them the value and both ends of the band around it
Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def plot_curves(
    curves: Mapping[str, Curve], styles: Mapping[str, dict[str, Any]], title: str, value_label: str, file: Path
) -> None:
    """
    Plot curves over environment steps with bands around them.

    :param curves: Curves by name
    :param styles: Style of each line, with its ``color`` and ``label``
    :param title: Title of the figure
    :param value_label: What the values are
    :param file: Where to save the figure
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (steps, values, low, high) in curves.items():
        axes.plot(steps, values, **styles[name])
        axes.fill_between(steps, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(value_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=120)
    plt.close(figure)

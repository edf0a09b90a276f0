"""Plots of a report."""

import numpy as np
import torch as th
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_agd.world_model import Segments

# Okabe and Ito's colours, which colour-blind readers can distinguish
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
STYLES = {
    "guided": {"color": ORANGE, "marker": "s"},
    "unguided": {"color": BLUE, "marker": "o"},
    "persistence": {"color": GREY, "linestyle": "--"},
    "mean reward": {"color": GREY, "linestyle": "--"},
    "guided, imagined": {"color": ORANGE, "marker": "s"},
    "unguided, imagined": {"color": BLUE, "marker": "o"},
    "guided, real": {"color": ORANGE, "linestyle": ":"},
    "unguided, real": {"color": BLUE, "linestyle": ":"},
}
TITLES = {
    "claimed": "imagined, by the critic",
    "replayed": "replayed, by the critic",
    "monte_carlo": "replayed, by Monte Carlo returns",
}
# Start states and dimensions that are shown, and the share of the samples that a band holds
N_SHOWN_STARTS = 3
N_SHOWN_DIMENSIONS = 4
BAND = (0.05, 0.95)


def new_figure(width: float, height: float) -> Figure:
    """
    :param width: In inches
    :param height: In inches
    :return: A figure that needs no display and leaves matplotlib's settings alone
    """
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_errors(errors: dict[str, dict[str, list[float]]]) -> Figure:
    """
    :param errors: For states, rewards and terminations, lists of one figure per step
    :return: The figure
    """
    # Many tasks have no terminations
    shown = {what: curves for what, curves in errors.items() if any(map(any, curves.values()))}
    figure = new_figure(3.7 * len(shown), 3.6)
    labels = {
        "states": "error of states [standard deviations]",
        "rewards": "error of rewards [standard deviations]",
        "terminations": "terminations per transition",
    }
    for axes, (what, curves) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for name, values in curves.items():
            axes.plot(np.arange(1, len(values) + 1), values, label=name, markersize=4, **STYLES[name])
        axes.set_xlabel("step of the segment")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(labels[what])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def plot_dimensions(real: Segments[th.Tensor], samples: Segments[th.Tensor]) -> Figure:
    """
    The dimensions that change most in relation to their spread over all start states, from a few start states.

    :param real: Real segments in raw units, B of them
    :param samples: Imagined segments after the same actions, the same number from each start state
    :return: The figure
    """
    truth = real.observations.cpu().numpy()
    imagined = samples.observations.cpu().numpy().reshape(len(truth), -1, *truth.shape[1:])
    whole = np.flatnonzero(real.mask.all(1).cpu().numpy())
    starts = (
        whole[np.linspace(0, len(whole) - 1, min(N_SHOWN_STARTS, len(whole))).astype(int)] if len(whole) else np.array([0])
    )
    spread = truth[:, 0].std(0)
    change = np.abs(np.diff(truth, axis=1)).mean((0, 1)) / np.where(spread > 0, spread, np.inf)
    dimensions = np.sort(np.argsort(change)[::-1][:N_SHOWN_DIMENSIONS])
    figure = new_figure(3.6 * len(starts), 2.2 * len(dimensions))
    grid = figure.subplots(len(dimensions), len(starts), sharex=True, squeeze=False)
    steps = np.arange(truth.shape[1])
    for row, dimension in zip(grid, dimensions, strict=True):
        for axes, start in zip(row, starts, strict=True):
            values = imagined[start, :, :, dimension]
            low, high = np.quantile(values, BAND, axis=0)
            axes.fill_between(steps, low, high, color=BLUE, alpha=0.3, linewidth=0, label="imagined, 90 % of samples")
            axes.plot(steps, np.median(values, axis=0), color=BLUE, label="imagined, median")
            axes.plot(steps, truth[start, :, dimension], color="black", linestyle="--", label="real")
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"observation[{dimension}]")
    for axes, start in zip(grid[-1], starts, strict=True):
        axes.set_xlabel(f"step of segment {start}")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return figure


def plot_advantages(advantages: dict[str, dict[str, np.ndarray]], gains: dict[str, dict[str, float]]) -> Figure:
    """
    :param advantages: For each kind, the advantages of segments with and without guidance
    :param gains: For each kind, the gain of guidance and its standard error
    :return: The figure
    """
    figure = new_figure(3.7 * len(advantages), 3.6)
    for axes, (kind, groups) in zip(figure.subplots(1, len(advantages), squeeze=False)[0], advantages.items(), strict=True):
        low, high = np.quantile(np.concatenate(list(groups.values())), (0.005, 0.995))
        bins = np.linspace(low, high, 31)
        for name, values in groups.items():
            color = STYLES[name]["color"]
            clipped = np.clip(values.ravel(), low, high)
            axes.hist(clipped, bins=bins, histtype="step", linewidth=1.5, color=color, label=name)
            axes.axvline(values.mean(), color=color, linestyle="--", linewidth=1.2)
        axes.set_title(f"{TITLES[kind]}\ngain {gains[kind]['gain']:.2f} ± {gains[kind]['standard_error']:.2f}", fontsize=10)
        axes.set_xlabel("advantage of a segment\n[standard deviations of one step]")
        axes.set_ylabel("segments")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure

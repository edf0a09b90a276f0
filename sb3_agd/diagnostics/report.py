"""One folder with all there is to see of what a model imagines."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_agd.agdppo import AGDPPO
from sb3_agd.diagnostics.evaluator import Evaluator, Outcome, StartStates
from sb3_agd.diagnostics.figures import plot_advantages, plot_dimensions, plot_errors
from sb3_agd.diagnostics.video import film
from sb3_agd.imagination import NO_GUIDANCE, Guide
from sb3_agd.imagination.segment_errors import segment_errors
from sb3_agd.world_model import Segments

GUIDED, UNGUIDED = "guided", "unguided"


def imagination_report(
    model: AGDPPO,
    make_env: Callable[[], gym.Env],
    folder: str | Path,
    n_starts: int = 32,
    guidance: str | Guide | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    n_filmed: int = 25,
) -> dict[str, Any]:
    """
    See what a model imagines, and whether it comes true: imagined actions are carried out in the real environment, which
    is put back into the states that imagination starts from. Where that is impossible, recorded segments take the place
    of replayed ones.

    The folder gets ``errors.png`` (error of each step), ``dimensions.png`` (imagined against real, with the spread of
    samples), ``advantages.png`` (what guidance claims and what is true of it), ``video.mp4`` (MuJoCo tasks whose state
    can be told from the observation: real left, imagined right), and all figures in ``report.json``.

    :param model: A trained model, loaded with or without an environment
    :param make_env: Makes an environment like the one it was trained in, without VecNormalize; for the video with
        ``render_mode="rgb_array"``
    :param folder: Where to write; created if missing
    :param n_starts: Number of start states
    :param guidance: See :class:`AGDPPO`; ``None`` for the model's own
    :param guidance_scale: Strength of the guidance, taken as it is; ``None`` for the strength that it had in the last
        rollout
    :param seed: Seed of the environment and of all noise
    :param n_filmed: Number of segments in the video, 0 for none
    :return: All figures, as in the JSON file
    :raises ValueError: If an argument is invalid, the environment does not fit, or the world model was never trained
    """
    if n_starts < 2:
        raise ValueError(f"`n_starts` must be at least 2, not {n_starts}")
    settings = model.settings
    chosen = settings.guidance_at(max(0.0, model._current_progress_remaining), guidance, guidance_scale)
    if guidance_scale is None:
        chosen = replace(chosen, scale=model.imagination.effective_guidance_scale(chosen.scale))
    evaluator = Evaluator(model, make_env, seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start_states = evaluator.collect_start_states(n_starts)
    outcomes = {
        GUIDED: evaluator.evaluate(start_states, chosen),
        UNGUIDED: evaluator.evaluate(start_states, NO_GUIDANCE),
    }
    report: dict[str, Any] = {
        "env": evaluator.env.spec.id if evaluator.env.spec is not None else type(evaluator.env.unwrapped).__name__,
        "timesteps": model.num_timesteps,
        "guidance": type(chosen.guide).__name__ if chosen.guide is not None else None,
        "guidance_mode": chosen.mode,
        "guidance_scale": chosen.scale,
        "n_candidates": chosen.n_candidates,
        "horizon": evaluator.horizon,
        "n_starts": n_starts,
        "seed": seed,
        "replayed_in_the_real_environment": start_states.snapshots is not None,
        "errors": errors_per_step(evaluator, start_states, outcomes),
        "advantages": advantages(outcomes),
    }
    plot_errors(report["errors"], folder / "errors.png")
    plot_dimensions(start_states.recorded, evaluator.spread(start_states), folder / "dimensions.png")
    plot_advantages(report["advantages"], folder / "advantages.png")
    # Without the single values, which are for the plots
    report["advantages"] = {
        kind: {name: figure for name, figure in figures.items() if name != "values"}
        for kind, figures in report["advantages"].items()
    }
    (folder / "report.json").write_text(json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n")
    if n_filmed > 0:
        obstacle = film(evaluator, chosen, n_filmed, folder / "video.mp4")
        if obstacle is not None:
            warnings.warn(f"No video: {obstacle}", stacklevel=2)
    return report


def without_nan(figures: Any) -> Any:
    """
    :param figures: Lists and dictionaries of figures
    :return: The same for JSON, which knows no NaN: ``None`` where there was nothing to measure
    """
    if isinstance(figures, dict):
        return {name: without_nan(figure) for name, figure in figures.items()}
    if isinstance(figures, list):
        return [without_nan(figure) for figure in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def termination_rates(segments: Segments[th.Tensor]) -> list[float]:
    """
    :param segments: Segments
    :return: For each step, the share of terminations among the transitions that are not masked
    """
    return ((segments.terminations & segments.mask).sum(0) / segments.mask.sum(0)).tolist()


def errors_per_step(evaluator: Evaluator, start_states: StartStates, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """
    :param evaluator: Model and environment
    :param start_states: Start states
    :param outcomes: Segments with and without guidance
    :return: Errors in standard deviations of the data, and rates of termination, lists of one figure per step
    """
    world_model = evaluator.imagination.world_model
    if start_states.snapshots is None:
        pairs = {
            UNGUIDED: (
                world_model.predict(start_states.states, start_states.recorded.actions, evaluator.generator),
                start_states.recorded,
            )
        }
    else:
        pairs = {name: (outcome.imagined, outcome.real) for name, outcome in outcomes.items() if outcome.real is not None}
    compared = {name: segment_errors(world_model, *pair) for name, pair in pairs.items()}
    baseline = compared[UNGUIDED]
    return {
        "states": {name: errors["states"].tolist() for name, errors in compared.items()}
        | {"persistence": baseline["persistence"].tolist()},
        "rewards": {name: errors["rewards"].tolist() for name, errors in compared.items()}
        | {"mean reward": baseline["mean_reward"].tolist()},
        "terminations": {f"{name}, imagined": termination_rates(imagined) for name, (imagined, _) in pairs.items()}
        | {f"{name}, real": termination_rates(real) for name, (_, real) in pairs.items()},
    }


def advantages(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """
    Advantages of segments with and without guidance, as the critic claims them of the imagined segments, as it sees them in
    the real ones, and by Monte Carlo returns in the real environment. The advantage of a Monte Carlo return is its excess
    over the mean of the unguided ones from the same start state.

    :param outcomes: Segments with and without guidance
    :return: For each kind of advantage, the means, the gain of guidance, its standard error over start states, and all
        values
    """
    kinds = {"claimed": {name: outcome.claimed for name, outcome in outcomes.items()}}
    for kind, attribute in (("replayed", "replayed"), ("monte_carlo", "returns")):
        values = {name: getattr(outcome, attribute) for name, outcome in outcomes.items()}
        if all(value is not None for value in values.values()):
            kinds[kind] = values
    if "monte_carlo" in kinds:
        unguided = kinds["monte_carlo"][UNGUIDED]
        mean, n_samples = unguided.mean(1, keepdims=True), unguided.shape[1]
        kinds["monte_carlo"] = {
            GUIDED: kinds["monte_carlo"][GUIDED] - mean,
            # Over the mean of the others
            UNGUIDED: (unguided - mean) * n_samples / (n_samples - 1),
        }
    figures = {}
    for kind, values in kinds.items():
        gains = values[GUIDED].mean(1) - values[UNGUIDED].mean(1)
        figures[kind] = {
            **{f"mean_{name}": float(array.mean()) for name, array in values.items()},
            "gain": float(gains.mean()),
            "standard_error": float(gains.std(ddof=1) / math.sqrt(len(gains))),
            "values": {name: np.ravel(array) for name, array in values.items()},
        }
    return figures

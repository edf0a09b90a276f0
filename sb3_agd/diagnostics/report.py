"""A report on what a model imagines: figures, plots and a video in one folder."""

import json
import math
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_agd.agdppo import AGDPPO
from sb3_agd.diagnostics.evaluator import Evaluator, Outcome, StartStates
from sb3_agd.diagnostics.figures import plot_advantages, plot_dimensions, plot_errors
from sb3_agd.diagnostics.progress import track
from sb3_agd.diagnostics.video import save_film
from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.imagination import NO_GUIDANCE, Guidance, Guide
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
    n_filmed: int = 12,
    progress_bar: bool = False,
) -> dict[str, Any]:
    """
    Compare what a model imagines with reality: the real environment is restored to the start states of imagined segments,
    and carries out their actions. If it cannot be restored, segments of its episodes are imagined again instead.

    The folder gets ``errors.png`` (error of each step), ``dimensions.png`` (imagined and real states, with the spread of
    samples), ``advantages.png`` (claimed and true effect of guidance), ``video.mp4`` (real left, imagined right; only MuJoCo
    tasks whose pose can be computed from the observation), and all figures in ``report.json``.

    :param model: A trained model, loaded with or without an environment
    :param make_env: Makes an environment like the one it was trained in, without VecNormalize; for the video with
        ``render_mode="rgb_array"``. It is closed at the end
    :param folder: Where to write; created if missing
    :param n_starts: Number of start states
    :param guidance: See :class:`AGDPPO`; ``None`` for the model's own
    :param guidance_scale: Strength of the guidance, taken as it is; ``None`` for the strength that it had in the last
        rollout
    :param seed: Seed of the environment and of all noise
    :param n_filmed: Number of segments in the video, 0 for none
    :param progress_bar: Show the progress on the standard error stream: bars on terminals, elsewhere a line for each part
    :return: All figures, as in the JSON file
    :raises ValueError: If an argument is invalid, the environment does not fit, or the world model was never trained
    """
    if n_starts < 2:
        raise ValueError(f"`n_starts` must be at least 2, not {n_starts}")
    model.imagination.check_trained()
    chosen = model.settings.guidance_at(max(0.0, model._current_progress_remaining), guidance, guidance_scale)
    if guidance_scale is None:
        chosen = model.imagination.effective_guidance(chosen)
    evaluator = Evaluator(model, make_env, seed, progress_bar)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(evaluator.env):
        report = measure(evaluator, chosen, n_starts, folder)
        (folder / "report.json").write_text(json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n")
        if n_filmed > 0:
            obstacle = save_film(evaluator, chosen, n_filmed, folder / "video.mp4")
            if obstacle is not None:
                warnings.warn(f"No video: {obstacle}", stacklevel=2)
    return report


def measure(evaluator: Evaluator, guidance: Guidance, n_starts: int, folder: Path) -> dict[str, Any]:
    """
    :param evaluator: Model and environment
    :param guidance: The guidance, its scale taken as it is
    :param n_starts: Number of start states
    :param folder: Where to save the plots
    :return: All figures
    """
    model, env = evaluator.model, evaluator.env
    start_states = evaluator.collect_start_states(n_starts)
    outcomes = {name: evaluator.evaluate(start_states, used) for name, used in ((GUIDED, guidance), (UNGUIDED, NO_GUIDANCE))}
    returns = {
        name: evaluator.monte_carlo_returns(start_states, outcome, f"Monte Carlo returns, {name}")
        for name, outcome in outcomes.items()
    }
    errors = errors_per_step(evaluator, start_states, outcomes)
    values = segment_values(outcomes, returns)
    gains = {kind: gain_of_guidance(own) for kind, own in values.items()}
    plots = {
        "errors": partial(plot_errors, errors),
        "dimensions": partial(plot_dimensions, start_states.recorded, evaluator.imagine_spread(start_states)),
        "advantages": partial(plot_advantages, values, gains),
    }
    for name in track([*plots], "Plots", evaluator.progress_bar):
        plots[name]().savefig(folder / f"{name}.png", dpi="figure")
    return {
        "env": env.spec.id if env.spec is not None else type(env.unwrapped).__name__,
        "timesteps": model.num_timesteps,
        "guidance": type(guidance.guide).__name__ if guidance.guide is not None else None,
        "guidance_mode": guidance.mode,
        "guidance_scale": guidance.scale,
        "n_candidates": guidance.n_candidates,
        "horizon": evaluator.horizon,
        "n_starts": n_starts,
        "seed": evaluator.seed,
        "replayed_in_the_real_environment": start_states.snapshots is not None,
        "errors": errors,
        "advantages": gains,
    }


def without_nan(figures: Any) -> Any:
    """
    :param figures: Lists and dictionaries of figures
    :return: The same with ``None`` in place of NaN, which JSON does not have: there was nothing to measure
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


def segment_values(outcomes: dict[str, Outcome], returns: dict[str, np.ndarray | None]) -> dict[str, dict[str, np.ndarray]]:
    """
    Advantages of segments with and without guidance: as the critic judges the imagined segments ("claimed") and the real
    ones ("replayed"), and by Monte Carlo returns. The advantage of a Monte Carlo return is its excess over the mean of the
    other unguided ones from the same start state.

    :param outcomes: Segments with and without guidance
    :param returns: Their Monte Carlo returns, ``None`` if the environment cannot be restored
    :return: For each kind, the advantages with and without guidance, each of shape (B, SAMPLES)
    """
    kinds = {"claimed": {name: outcome.claimed for name, outcome in outcomes.items()}}
    replayed = {name: outcome.replayed for name, outcome in outcomes.items() if outcome.replayed is not None}
    if len(replayed) == len(outcomes):
        kinds["replayed"] = replayed
    guided, unguided = returns[GUIDED], returns[UNGUIDED]
    if guided is not None and unguided is not None:
        mean, n_samples = unguided.mean(1, keepdims=True), unguided.shape[1]
        kinds["monte_carlo"] = {GUIDED: guided - mean, UNGUIDED: (unguided - mean) * n_samples / (n_samples - 1)}
    return kinds


def gain_of_guidance(values: dict[str, np.ndarray]) -> dict[str, float]:
    """
    :param values: Advantages with and without guidance, each of shape (B, SAMPLES)
    :return: Their means, the gain of guidance, and its standard error over start states
    """
    gains = values[GUIDED].mean(1) - values[UNGUIDED].mean(1)
    return {
        **{f"mean_{name}": float(array.mean()) for name, array in values.items()},
        "gain": float(gains.mean()),
        "standard_error": float(gains.std(ddof=1) / math.sqrt(len(gains))),
    }

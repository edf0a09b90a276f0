"""The report on what a model imagines."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces

from sb3_agd import AGDPPO
from sb3_agd.diagnostics import imagination_report
from sb3_agd.diagnostics.report import GUIDED, UNGUIDED, gain_of_guidance, termination_rates, without_nan
from sb3_agd.world_model import Segments
from sb3_agd.world_model.segments import mask_after_termination


def test_the_file_holds_the_figures_and_they_add_up(report: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = report
    assert json.loads((folder / "report.json").read_text()) == figures
    assert figures["env"] == "Hopper-v5"
    assert figures["replayed_in_the_real_environment"]
    for what in ("states", "rewards", "terminations"):
        for values in figures["errors"][what].values():
            assert len(values) == figures["horizon"] == SMALL["horizon"]
            assert np.isfinite(values).all()
    assert set(figures["advantages"]) == {"claimed", "replayed", "monte_carlo"}
    for own in figures["advantages"].values():
        assert own["gain"] == pytest.approx(own["mean_guided"] - own["mean_unguided"], abs=1e-6)
        assert own["standard_error"] > 0
    assert figures["advantages"]["monte_carlo"]["mean_unguided"] == pytest.approx(0, abs=1e-6)
    # Guidance selects what the critic prefers
    assert figures["advantages"]["claimed"]["gain"] > 0


class HiddenState(ToyEnv):
    """Cannot be restored, because its state is not in its attributes."""

    count = 0
    n_closed = 0

    def _observation(self) -> np.ndarray:
        HiddenState.count += 1
        return np.array([np.sin(HiddenState.count), np.cos(HiddenState.count), 0], dtype=np.float32)

    def close(self) -> None:
        HiddenState.n_closed += 1


def test_recorded_segments_replace_real_ones_if_the_environment_cannot_be_restored(toy_agent: AGDPPO, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="No video: the pose of HiddenState cannot be computed"):
        figures = imagination_report(toy_agent, HiddenState, tmp_path, 2, n_filmed=1)
    assert not figures["replayed_in_the_real_environment"]
    assert set(figures["advantages"]) == {"claimed"}
    assert set(figures["errors"]["states"]) == {"unguided", "persistence"}
    assert (tmp_path / "advantages.png").is_file()
    assert HiddenState.n_closed == 1


def test_bad_arguments_are_refused_by_name(toy_agent: AGDPPO, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The world model was not trained yet"):
        imagination_report(AGDPPO("MlpPolicy", ToyEnv(), **SMALL), ToyEnv, tmp_path)
    with pytest.raises(ValueError, match="`n_starts` must be at least 2, not 1"):
        imagination_report(toy_agent, ToyEnv, tmp_path, n_starts=1)
    other = partial(ToyEnv, observation_space=spaces.Box(-1, 1, (5,)))
    with pytest.raises(ValueError, match=r"environment's observation space .*5.* is not the model's"):
        imagination_report(toy_agent, other, tmp_path)


def test_what_was_not_measured_is_null_in_json() -> None:
    assert without_nan({"rates": [0.5, math.nan], "env": "Hopper-v5"}) == {"rates": [0.5, None], "env": "Hopper-v5"}


def test_transitions_after_a_termination_do_not_count_in_termination_rates() -> None:
    terminations = th.tensor([[False, True, True], [False, False, True], [False, False, False]])
    nothing = th.zeros(3, 3)
    segments = Segments(th.zeros(3, 4, 1), nothing[..., None], nothing, terminations, mask_after_termination(terminations))
    assert termination_rates(segments) == pytest.approx([0, 1 / 3, 1 / 2])


def test_the_standard_error_of_the_gain_is_over_start_states() -> None:
    guided, unguided = np.array([[1.0, 3.0], [4.0, 6.0]]), np.zeros((2, 2))
    figures = gain_of_guidance({GUIDED: guided, UNGUIDED: unguided})
    assert figures["gain"] == 3.5
    # Means of 2 and 5 have a standard deviation of 2.12
    assert figures["standard_error"] == pytest.approx(1.5)

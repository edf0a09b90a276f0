from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from sb3_agd.agdppo import (
    AGDPPO,
    AugmentedDictRolloutBuffer,
    AugmentedRolloutBuffer,
    GuidanceCallback,
    ResumableCheckpointCallback,
)
from sb3_agd.imagination import ExponentialAdvantageGuide, Guide, RewardGuide, SigmoidAdvantageGuide
from sb3_agd.world_model import DiffusionWorldModel, Segments

if TYPE_CHECKING:
    from sb3_agd.diagnostics import GuidanceGainCallback, imagination_report

__version__ = Path(__file__).with_name("version.txt").read_text().strip()

__all__ = [
    "AGDPPO",
    "AugmentedDictRolloutBuffer",
    "AugmentedRolloutBuffer",
    "DiffusionWorldModel",
    "ExponentialAdvantageGuide",
    "GuidanceCallback",
    "GuidanceGainCallback",
    "Guide",
    "ResumableCheckpointCallback",
    "RewardGuide",
    "Segments",
    "SigmoidAdvantageGuide",
    "__version__",
    "imagination_report",
]

gym.register("NoisyPendulum-v0", entry_point="sb3_agd.replication.noisy_pendulum:NoisyPendulumEnv", max_episode_steps=200)


def __getattr__(name: str) -> Any:
    # Only when they are asked for: that saves a moment at each start
    if name in ("GuidanceGainCallback", "imagination_report"):
        from sb3_agd import diagnostics

        return getattr(diagnostics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

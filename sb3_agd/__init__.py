from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from sb3_agd.agdppo import (
        AGDPPO,
        AugmentedDictRolloutBuffer,
        AugmentedRolloutBuffer,
        GuidanceCallback,
        ResumableCheckpointCallback,
    )
    from sb3_agd.diagnostics import GuidanceGainCallback, ImaginationCallback, ImaginedVecEnv, imagination_report
    from sb3_agd.imagination import ExponentialAdvantageGuide, Guide, RewardGuide, SigmoidAdvantageGuide
    from sb3_agd.world_model import DiffusionWorldModel, Segments

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
    "ImaginationCallback",
    "ImaginedVecEnv",
    "ResumableCheckpointCallback",
    "RewardGuide",
    "Segments",
    "SigmoidAdvantageGuide",
    "__version__",
    "imagination_report",
]

# Imported when an environment is made
gym.register("NoisyPendulum-v0", entry_point="sb3_agd.replication.noisy_pendulum:NoisyPendulumEnv", max_episode_steps=200)


def __getattr__(name: str) -> Any:
    # Only when one is asked for: PyTorch and SB3 take seconds to import, and `sb3-agd --help` needs neither
    if name in __all__:
        for room in ("world_model", "imagination", "agdppo", "diagnostics"):
            module = import_module(f"sb3_agd.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

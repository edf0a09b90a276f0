from pathlib import Path

from sb3_agd.agdppo import (
    AGDPPO,
    AugmentedDictRolloutBuffer,
    AugmentedRolloutBuffer,
    GuidanceCallback,
    ResumableCheckpointCallback,
)
from sb3_agd.world_model import (
    DiffusionWorldModel,
    ExponentialAdvantageGuide,
    Guide,
    RewardGuide,
    SigmoidAdvantageGuide,
)

__version__ = Path(__file__).with_name("version.txt").read_text().strip()

__all__ = [
    "AGDPPO",
    "AugmentedDictRolloutBuffer",
    "AugmentedRolloutBuffer",
    "DiffusionWorldModel",
    "ExponentialAdvantageGuide",
    "GuidanceCallback",
    "Guide",
    "ResumableCheckpointCallback",
    "RewardGuide",
    "SigmoidAdvantageGuide",
    "__version__",
]

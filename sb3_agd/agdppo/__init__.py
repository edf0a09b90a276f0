from sb3_agd.agdppo.agdppo import AGDPPO
from sb3_agd.agdppo.callback import GuidanceCallback
from sb3_agd.agdppo.rollout_buffer import AugmentedDictRolloutBuffer, AugmentedRolloutBuffer
from sb3_agd.checkpoint.resume import ResumableCheckpointCallback

__all__ = ["AGDPPO", "AugmentedDictRolloutBuffer", "AugmentedRolloutBuffer", "GuidanceCallback", "ResumableCheckpointCallback"]

from sb3_agd.agdppo.agdppo import AGDPPO
from sb3_agd.agdppo.guidance_callback import GuidanceCallback
from sb3_agd.agdppo.resuming import ResumableCheckpointCallback
from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer

__all__ = ["AGDPPO", "AugmentedRolloutBuffer", "GuidanceCallback", "ResumableCheckpointCallback"]

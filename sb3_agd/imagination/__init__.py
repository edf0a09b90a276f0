from sb3_agd.imagination.action_sampler import ActionSampler
from sb3_agd.imagination.guides import Critic, ExponentialAdvantageGuide, Guide, RewardGuide, SigmoidAdvantageGuide
from sb3_agd.imagination.imagination import Imagination, ImaginationState
from sb3_agd.imagination.settings import NO_GUIDANCE, Guidance, Settings

__all__ = [
    "NO_GUIDANCE",
    "ActionSampler",
    "Critic",
    "ExponentialAdvantageGuide",
    "Guidance",
    "Guide",
    "Imagination",
    "ImaginationState",
    "RewardGuide",
    "Settings",
    "SigmoidAdvantageGuide",
]

from sb3_agd.world_model.guides import Critic, ExponentialAdvantageGuide, Guide, RewardGuide, SigmoidAdvantageGuide
from sb3_agd.world_model.segments import Segments
from sb3_agd.world_model.world_model import DiffusionWorldModel

__all__ = [
    "Critic",
    "DiffusionWorldModel",
    "ExponentialAdvantageGuide",
    "Guide",
    "RewardGuide",
    "Segments",
    "SigmoidAdvantageGuide",
]

from sb3_agd.imagination.imagination import Imagination, ImaginationState
from sb3_agd.imagination.settings import NO_GUIDANCE, Guidance, Settings

__all__ = ["NO_GUIDANCE", "Guidance", "Imagination", "ImaginationState", "Settings"]

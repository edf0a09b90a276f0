from sb3_agd.world_model.segments import Segments
from sb3_agd.world_model.world_model import DiffusionWorldModel

__all__ = ["DiffusionWorldModel", "Segments"]

from sb3_agd.diagnostics.gain_callback import GuidanceGainCallback
from sb3_agd.diagnostics.report import imagination_report

__all__ = ["GuidanceGainCallback", "imagination_report"]

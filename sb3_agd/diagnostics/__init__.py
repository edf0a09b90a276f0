from typing import TYPE_CHECKING, Any

from sb3_agd.diagnostics.gain_callback import GuidanceGainCallback
from sb3_agd.diagnostics.imagined_vec_env import ImaginedVecEnv

if TYPE_CHECKING:
    from sb3_agd.diagnostics.report import imagination_report

__all__ = ["GuidanceGainCallback", "ImaginedVecEnv", "imagination_report"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: figures need an extra
    if name != "imagination_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from sb3_agd.diagnostics.report import imagination_report
    except ImportError as error:
        raise ImportError(f'`imagination_report` needs the extra `zoo`: pip install "sb3_agd[zoo]" ({error})') from error
    return imagination_report

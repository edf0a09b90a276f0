"""What trainings log, kept for the tests."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter


class KeptLog(KVWriter):
    """Keeps all that is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


class ImaginedRows(BaseCallback):
    """Keeps how many rows were imagined for each update, as the algorithm logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[float] = []
        self._total = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        before, self._total = self._total, self.logger.name_to_value["agd/n_imagined_total"]
        self.counts.append(self._total - before)

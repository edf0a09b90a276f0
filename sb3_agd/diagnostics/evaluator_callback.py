"""What callbacks that measure imagination during training have in common."""

from abc import abstractmethod

from stable_baselines3.common.callbacks import BaseCallback

from sb3_agd.agdppo import AGDPPO
from sb3_agd.checkpoint.random_streams import untouched_global_streams
from sb3_agd.checkpoint.resume import check_sees_each_step
from sb3_agd.diagnostics.evaluator import Evaluator


class EvaluatorCallback(BaseCallback):
    """Measures at the end of rollouts, in an environment of its own. Training is the same bit for bit with and without it."""

    # From the start of training on
    evaluator: Evaluator | None = None

    def _init_callback(self) -> None:
        check_sees_each_step(self)

    def _on_training_start(self) -> None:
        check_sees_each_step(self)
        if not isinstance(self.model, AGDPPO):
            raise ValueError(f"{type(self).__name__} needs AGDPPO, not {type(self.model).__name__}")
        with untouched_global_streams():
            self.evaluator = self._make_evaluator(self.model)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model, evaluator = self.model, self.evaluator
        assert isinstance(model, AGDPPO) and evaluator is not None
        if model.world_model.is_trained and self._is_due(model.num_timesteps, model.n_steps * model.n_envs):
            # Other start states in each rollout, but the same after a resumption
            evaluator.set_seed(model.num_timesteps)
            with untouched_global_streams():
                self._measure(evaluator)

    @abstractmethod
    def _make_evaluator(self, model: AGDPPO) -> Evaluator:
        """Called at the start of training. A ``ValueError`` says what does not fit."""

    @abstractmethod
    def _is_due(self, n_steps: int, rollout_size: int) -> bool:
        """Whether to measure after so many steps, of which the newest rollout has the given number."""

    @abstractmethod
    def _measure(self, evaluator: Evaluator) -> None:
        """Measure and log. The world model is trained."""

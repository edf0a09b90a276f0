"""Standardisation with running statistics."""

import torch as th
from torch import nn

# A dimension is constant if its range is at most this share of its magnitude: its values are the same up to the rounding of
# single precision, in which transitions are stored
CONSTANT_TOLERANCE = 2 * th.finfo(th.float32).eps
# Imagined values may leave the observed range by this share of its width.
RANGE_MARGIN = 0.1


class Normalizer(nn.Module):
    """
    Standardise vectors by the running mean and standard deviation of all the data seen so far.
    The statistics are buffers, so they are saved and moved with the model. Dimensions that never change keep scale 1, so
    that rounding errors are not amplified.

    :param dim: Number of dimensions
    """

    count: th.Tensor
    mean: th.Tensor
    squared_deviations: th.Tensor
    low: th.Tensor
    high: th.Tensor
    shift: th.Tensor
    scale: th.Tensor

    def __init__(self, dim: int):
        super().__init__()
        # Accumulated in double precision: single precision loses the variance of data with a large mean
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(dim, dtype=th.float64))
        self.register_buffer("squared_deviations", th.zeros(dim, dtype=th.float64))
        self.register_buffer("low", th.full((dim,), -th.inf))
        self.register_buffer("high", th.full((dim,), th.inf))
        self.register_buffer("shift", th.zeros(dim))
        self.register_buffer("scale", th.ones(dim))

    @th.no_grad()
    def update(self, values: th.Tensor) -> None:
        """
        Merge a batch into the running statistics (Chan et al., 1983).

        :param values: Shape (N, dim)
        """
        if len(values) == 0:
            return
        values = values.to(self.mean)
        count = self.count + len(values)
        batch_mean = values.mean(0)
        delta = batch_mean - self.mean
        share = len(values) / count
        self.squared_deviations += (values - batch_mean).square().sum(0) + delta.square() * self.count * share
        self.mean += delta * share
        low, high = values.amin(0).float(), values.amax(0).float()
        first = self.count == 0
        self.low.copy_(low if first else th.minimum(self.low, low))
        self.high.copy_(high if first else th.maximum(self.high, high))
        self.count.copy_(count)
        deviation = (self.squared_deviations / count).sqrt()
        magnitude = th.maximum(self.low.abs(), self.high.abs())
        constant = self.high - self.low <= CONSTANT_TOLERANCE * magnitude
        self.shift.copy_(self.mean)
        self.scale.copy_(th.where(constant, th.ones_like(deviation), deviation))

    def forward(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: In raw units, shape (..., dim)
        :return: Standardised values, same shape
        """
        return (values - self.shift) / self.scale

    def inverse(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: Standardised, shape (..., dim)
        :return: Values in raw units, same shape
        """
        return values * self.scale + self.shift

    @property
    def bounds(self) -> tuple[th.Tensor, th.Tensor]:
        """
        Lowest and highest standardised values: the observed range plus a margin. Far outside it nothing was learned.
        Each of shape (dim,).
        """
        margin = RANGE_MARGIN * (self.high - self.low)
        return self(self.low - margin), self(self.high + margin)

    def clamp(self, values: th.Tensor) -> th.Tensor:
        """Keep standardised values within the bounds, shape (..., dim)."""
        return th.clamp(values, *self.bounds)

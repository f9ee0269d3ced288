"""Batches that grow during the training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from luthier.parts import Part, resolve


class BatchGrowth(Part):
    """Batches that grow by `factor` every `every` epochs: where lr decay would have come, noise falls all the same.

    Source: Smith et al. 2018, Don't Decay the Learning Rate, Increase the Batch Size (arXiv 1711.00489).
    """

    name: Literal["grow"] = "grow"
    factor: float = Field(2.0, gt=1, description="Multiplier at each growth.")
    every: int = Field(5, ge=1, description="Epochs between two growths.")
    maximum: int = Field(1024, ge=1, description="Batches grow no further than this.")

    def batch_size(self, base: int, epoch: int) -> int:
        """The batch size in an epoch: `min(maximum, base * factor ** (epoch // every))`, never below `base`.

        >>> [BatchGrowth(every=2, maximum=200).batch_size(64, epoch) for epoch in range(6)]
        [64, 64, 128, 128, 200, 200]
        """
        growths = epoch // self.every
        room = max(1.0, self.maximum / base)
        if growths * math.log(self.factor) >= math.log(room):
            return base if growths == 0 else max(base, self.maximum)
        return int(base * self.factor**growths)


BATCH_SCHEDULES: dict[str, type[BatchGrowth]] = {"grow": BatchGrowth}

BatchGrowthChoice = Annotated[BatchGrowth, resolve(BATCH_SCHEDULES, "batch-size schedule")]

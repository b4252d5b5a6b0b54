"""The batch of a call of a loss of mined triplets."""

from __future__ import annotations

from collections.abc import Sequence

from fusedloss._vmap.batch import Axis, Batch


class TripletsBatch(Batch):
    """Vectors of one sample are not compared with those of another: the op runs for each sample."""

    operands = 1

    @staticmethod
    def fits(dims: Sequence[Axis]) -> bool:
        return False

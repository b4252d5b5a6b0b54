"""What is measured of the losses over a lattice: CTC of logits, against torch's of their log-softmax."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from fusedloss import functional as fused_functional
from fusedloss._devices import Device
from fusedloss.bench import torch_formulas
from fusedloss.bench.cases import Loss, Operands, Row, Shape


def _sequences(shape: Shape) -> Operands:
    """Samples as long as they may be: what torch spends on the shorter ones of a batch depends on the longest."""
    frames, samples, classes, labels = shape
    lengths = [torch.full((samples,), length) for length in (frames, labels)]
    return [torch.randn(frames, samples, classes), torch.randint(1, classes, (samples, labels)), *lengths]


CTC = Loss("ctc_loss", partial(fused_functional.ctc_loss, from_logits=True), torch_formulas.ctc_loss, _sequences)

SHAPES: tuple[Shape, ...] = (  # frames, samples, classes, labels
    (150, 16, 80, 30),
    (500, 8, 80, 60),
    (500, 32, 64, 100),
    (500, 4, 5000, 60),
    (200, 16, 5000, 40),
    (150, 1, 80, 30),
    (500, 1, 5000, 60),
    (20, 16, 80, 8),
    (20, 1, 80, 8),
)


def _batch_first(operands: Operands) -> Operands:
    """The same logits, laid out sample by sample."""
    return [operands[0].transpose(0, 1).contiguous().transpose(0, 1), *operands[1:]]


def rows(threads: int, device: Device) -> Iterator[Row]:
    """Every line of the tables, case by case."""
    settings: dict[str, Any] = {"threads": threads, "device": device}

    def row(shape: Shape, case: str = "lattice", **how: Any) -> Row:
        return Row(CTC, case, "x".join(map(str, shape)), shape, **settings | how)

    for shape in SHAPES:
        yield row(shape)
    usual = SHAPES[0]
    yield row(usual, "lattice-bfloat16", dtype=torch.bfloat16)
    yield row(usual, "lattice-reduction-none", reduction="none")
    yield row(usual, "lattice-batch-first", layout=_batch_first)
    if device is Device.CPU:
        yield row(usual, "lattice-one-thread", threads=1)

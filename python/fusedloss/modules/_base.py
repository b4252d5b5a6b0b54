"""What the modules of all families have in common."""

from typing import ClassVar

from torch import nn

from fusedloss._reduction import legacy_reduction


class Loss(nn.Module):
    """What every loss has: a reduction, and the settings that its repr shows."""

    _settings: ClassVar[tuple[str, ...]] = ("reduction",)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def extra_repr(self) -> str:
        shown = (name for name in self._settings if name not in self._buffers)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


class TorchLoss(Loss):
    """A loss that takes torch's deprecated spelling of the reduction too."""

    def __init__(
        self, size_average: bool | str | None = None, reduce: bool | None = None, reduction: str = "mean"
    ) -> None:
        if size_average is not None or reduce is not None:
            reduction = legacy_reduction(size_average, reduce)
        super().__init__(reduction)

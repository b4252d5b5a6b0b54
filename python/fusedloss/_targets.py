"""Asks the devices whether a target was no class."""

from __future__ import annotations

from fusedloss import _C


def check_targets() -> None:
    """Raises an error if a loss on a GPU met a target that is no class, since the last call of this function.

    On the CPU such a target is an IndexError at once. A GPU would have to be waited for: there the row's loss and
    gradient are NaN, and this function, which waits, says which target was the first.

    Raises:
        IndexError: naming the device, the target, its row and what was expected.

    Example:
        >>> import fusedloss
        >>> fusedloss.check_targets()
    """
    _C.check_targets()

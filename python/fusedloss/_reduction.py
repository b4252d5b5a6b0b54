"""torch's older spelling of `reduction`, and warnings that name the user's line."""

import sys
import warnings

import torch


def legacy_reduction(size_average: bool | str | None, reduce: bool | None) -> str:
    """Returns the reduction that torch's deprecated pair of flags stands for, with a UserWarning.

    A string in the place of `size_average` is the reduction itself, given by position.
    """
    if isinstance(size_average, str) and reduce is None:
        return size_average
    for name, flag in (("size_average", size_average), ("reduce", reduce)):
        # A weight or a parameter given by position lands here; by its truth value it would be lost in silence.
        if flag is not None and not isinstance(flag, bool):
            raise TypeError(
                f"{name} must be a bool or None, got {type(flag).__name__}; "
                "pass reduction, weight and the loss's parameters by name"
            )
    reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    warn_caller(f"size_average and reduce are deprecated, as in torch; pass reduction={reduction!r} instead")
    return reduction


def warn_caller(message: str) -> None:
    """Gives a UserWarning at the line outside of this package and torch from which the call came."""
    if torch.compiler.is_compiling():  # neither warnings nor frames can be traced
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fusedloss", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)

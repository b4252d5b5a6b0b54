"""Compiled loss functions for PyTorch: one fused pass, exact first and second derivatives, deterministic.

The functions are in :mod:`fusedloss.functional`, their modules here: ``fusedloss.HuberLoss(delta=1.5)``.
"""

from __future__ import annotations

from fusedloss import _compatibility

_compatibility.check_torch()

from fusedloss import _build, _vmap, functional  # noqa: E402
from fusedloss._compatibility import build_info  # noqa: E402
from fusedloss._targets import check_targets  # noqa: E402
from fusedloss.modules import *  # noqa: E402, F403
from fusedloss.modules import __all__ as _modules  # noqa: E402

_vmap.register()

__version__ = _build.VERSION
__all__ = ["__version__", "build_info", "check_targets", "functional", *_modules]

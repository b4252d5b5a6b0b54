"""The compiled module fits the torch it was built with; another one is refused in words, before it is loaded."""

from __future__ import annotations

from typing import TypedDict

import torch

from fusedloss._build import TORCH_VERSION


class BuildInfo(TypedDict):
    """What :func:`build_info` returns."""

    torch: str
    compiler: str
    instruction_sets: list[str]
    instruction_set: str
    cuda_architectures: list[str]


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def check_torch() -> None:
    """Raises ImportError unless the running torch has the major and minor version of the build."""
    if _release(torch.__version__) != _release(TORCH_VERSION):
        raise ImportError(
            f"fusedloss was built for torch {TORCH_VERSION}, but torch {torch.__version__} is installed. Rebuild it "
            "with: pip install --no-build-isolation --force-reinstall --no-deps fusedloss (from its source folder: "
            "pip install --no-build-isolation .), or install the torch it was built for."
        )


def build_info() -> BuildInfo:
    """What this build of fusedloss was made from and for.

    Returns:
        ``torch`` and ``compiler`` of the build, the ``instruction_sets`` it holds, the ``instruction_set`` chosen for
        this processor, and ``cuda_architectures`` (empty without CUDA kernels).

    Example:
        >>> import fusedloss
        >>> fusedloss.build_info()["torch"] == torch.__version__
        True
    """
    from fusedloss import _C

    info = _C.build_info()
    return BuildInfo(
        torch=info["torch"],
        compiler=info["compiler"],
        instruction_sets=info["instruction_sets"].split(),
        instruction_set=info["instruction_set"],
        cuda_architectures=info["cuda_architectures"].split(),
    )

"""The losses as torch.nn modules: torch.nn's constructor arguments and state_dict keys where torch has the class.

Each class calls the function of `fusedloss.functional` that its docstring names; formula, shapes and errors stand
there. A setting outside its range is reported by the first call. A `weight` that changes from batch to batch goes to
the function.
"""

from fusedloss.modules import lattice, pairs, pointwise, rows, triplets, vectors
from fusedloss.modules.lattice import *  # noqa: F403
from fusedloss.modules.pairs import *  # noqa: F403
from fusedloss.modules.pointwise import *  # noqa: F403
from fusedloss.modules.rows import *  # noqa: F403
from fusedloss.modules.triplets import *  # noqa: F403
from fusedloss.modules.vectors import *  # noqa: F403

__all__: list[str] = []
__all__ += pointwise.__all__
__all__ += rows.__all__
__all__ += lattice.__all__
__all__ += vectors.__all__
__all__ += pairs.__all__
__all__ += triplets.__all__

"""The losses as functions, with torch.nn.functional's names, argument order and defaults where torch has the loss.

One module a family; what holds for all losses of a family stands at the top of its module.
"""

from fusedloss.functional import lattice, pairs, parallel, pointwise, rows, triplets, vectors
from fusedloss.functional.lattice import *  # noqa: F403
from fusedloss.functional.pairs import *  # noqa: F403
from fusedloss.functional.parallel import *  # noqa: F403
from fusedloss.functional.pointwise import *  # noqa: F403
from fusedloss.functional.rows import *  # noqa: F403
from fusedloss.functional.triplets import *  # noqa: F403
from fusedloss.functional.vectors import *  # noqa: F403

__all__: list[str] = []
__all__ += pointwise.__all__
__all__ += rows.__all__
__all__ += lattice.__all__
__all__ += vectors.__all__
__all__ += pairs.__all__
__all__ += triplets.__all__
__all__ += parallel.__all__

// The CPU's passes over vectors and their distances. Compiled once for every instruction set.
#include "triplets/distances.h"
#include "triplets/mining.h"
#include "triplets/pairs.h"
#include "triplets/vectors.h"

namespace fusedloss::triplets {
namespace {

// What all threads see.
template <class T>
struct Shared {
  Shared(const Pass& pass, void* memory) : Shared(pass, Workspace(memory)) {}
  Shared(const Pass& pass, Workspace workspace) : vectors(pass, workspace), pairs(pass, vectors, workspace) {
    bytes = workspace.bytes();
  }
  Vectors<T> vectors;
  BlockPairs<T> pairs;
  int64_t bytes;
};

// What each has for itself.
template <class T>
struct Own {
  Own(const Pass& pass, const Vectors<T>& vectors, Workspace workspace)
      : distances(pass, vectors, workspace),
        miner(pass, workspace),
        slopes(workspace.take<T>(vectors.rows())),
        row(workspace.take<T>(2 * vectors.padded())) {
    bytes = workspace.bytes();
  }
  Distances<T> distances;
  Miner<T> miner;
  T *const slopes, *const row;
  int64_t bytes;
};

template <class T>
int64_t shared_room(const Pass& pass) {
  return Shared<T>(pass, nullptr).bytes;
}
template <class T>
int64_t own_room(const Pass& pass) {
  return Own<T>(pass, Shared<T>(pass, nullptr).vectors, Workspace()).bytes;
}

template <class T>
void read(const Pass& pass, Queue& panels, void* memory) {
  Shared<T> shared(pass, memory);
  for (int64_t panel; panels.take(panel);) shared.vectors.read_panel(panel);
}

template <class T>
void mine(const Pass& pass, const Block& block, Queue& pieces, void* memory, void* own_memory) {
  constexpr int64_t kPiece = Distances<T>::kAnchors;
  Shared<T> shared(pass, memory);
  Own<T> own(pass, shared.vectors, Workspace(own_memory));
  std::fill_n(own.slopes, shared.vectors.rows(), T(0));
  for (int64_t piece; pieces.take(piece);) {
    const int64_t first = piece * kPiece, count = std::min(kPiece, block.count - first);
    const int32_t* const anchors = pass.groups.anchors + block.first + first;
    own.distances.measure(anchors, count);
    for (int64_t a = 0; a < count; ++a) {
      const AnchorRow<T> row{anchors[a], own.distances.row(a), own.slopes};
      Mined mined = own.miner.mine(row);
      if (BlockPairs<T>::kept(pass))
        shared.pairs.take(first + a, row, mined);
      else
        std::fill_n(own.slopes, shared.vectors.rows(), T(0));
      pass.values[row.anchor] = mined.value;
      pass.above[row.anchor] = mined.above;
    }
  }
}

template <class T>
void give(const Pass& pass, const Block& block, int64_t begin, int64_t end, void* memory) {
  Shared<T>(pass, memory).pairs.give(block, begin, end);
}

template <class T>
void write(const Pass& pass, Queue& panels, void* memory, void* own_memory) {
  const Shared<T> shared(pass, memory);
  const Own<T> own(pass, shared.vectors, Workspace(own_memory));
  constexpr int64_t kPanel = Vectors<T>::kPanel;
  for (int64_t panel; panels.take(panel);)
    for (int64_t n = panel * kPanel; n < std::min((panel + 1) * kPanel, pass.count); ++n)
      shared.vectors.write(n, own.row);
}

template <class T>
constexpr Functions functions() {
  return {shared_room<T>, own_room<T>, Vectors<T>::kPanel, Distances<T>::kAnchors, read<T>, mine<T>, give<T>, write<T>};
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{functions<float>(), functions<double>()};

}  // namespace fusedloss::triplets

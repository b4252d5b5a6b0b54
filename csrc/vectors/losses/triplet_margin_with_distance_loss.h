// triplet_margin_with_distance_loss: triplet_margin_loss with a distance that is chosen: 0 for a p-norm of the
// differences, each plus eps; 1 for the square of the euclidean one; 2 for 1 - cosine.
// Source: torch.nn.functional.triplet_margin_with_distance_loss.
#pragma once
#include "vectors/losses/triplet_margin_loss.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

struct TripletMarginWithDistanceLoss {
  static constexpr Description about{.name = "triplet_margin_with_distance_loss",
                                     .operands = {"anchor", "positive", "negative"},
                                     .formula = Formula::triplet,
                                     .parameters = {{"margin", Domain::nonnegative},
                                                    {"distance_function", Domain::distance},
                                                    {"p", Domain::positive},
                                                    {"eps", Domain::any},
                                                    {"swap", Domain::flag}},
                                     .settings = [](const double* given) {
                                       return Settings{given[0], Distance(int(given[1])), given[2], given[3],
                                                       given[4] != 0};
                                     }};
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET

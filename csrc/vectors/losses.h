// All losses of vectors, and which formula a pass has.
#pragma once
#include <cmath>

#include "vectors/losses/contrastive_loss.h"
#include "vectors/losses/cosine_embedding_loss.h"
#include "vectors/losses/triplet_margin_loss.h"
#include "vectors/losses/triplet_margin_with_distance_loss.h"
#include "vectors/measures.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

// Calls use(measure) with the one of a norm.
template <class Use>
auto with_norm(const Settings& settings, const Use& use) {
  if (settings.distance == Distance::squared_euclidean || settings.p == 2) return use(Squares(settings));
  if (settings.p == 1) return use(Magnitudes(settings));
  if (std::isinf(settings.p)) return use(Largest(settings));
  return use(Powers(settings));
}
// Calls use(loss, measure).
template <class Use>
auto with_formula(Formula formula, const Settings& settings, const Use& use) {
  const double margin = settings.margin;
  if (formula == Formula::cosine_embedding) return use(CosineEmbeddingLoss{margin}, Cosine<true>(settings));
  if (formula == Formula::contrastive)
    return with_norm(settings, [&](const auto& measure) { return use(ContrastiveLoss{margin}, measure); });
  const auto of_triplets = [&](const auto& measure) {
    return settings.swap ? use(TripletLoss<true>{margin}, measure) : use(TripletLoss<false>{margin}, measure);
  };
  if (settings.distance == Distance::cosine) return of_triplets(Cosine<false>(settings));
  return with_norm(settings, of_triplets);
}

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET

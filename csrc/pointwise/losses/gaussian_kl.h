// gaussian_kl: the divergence of N(mean, exp(log_var)) from N(0, 1), per dimension
//   f = (mean^2 + exp(log_var) - 1 - log_var) / 2
//   df/dmean = mean;   df/dlog_var = (exp(log_var) - 1) / 2
// Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, appendix B.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct GaussianKl {
  static constexpr Description about{
      .name = "gaussian_kl", .operands = {"mean", "log_var"}, .grouped = Reduction::rowmean};
  explicit GaussianKl(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V mean, V log_var) const {
    const V growth = expm1(log_var);
    return {0.5 * (mean * mean + (growth - log_var)), {mean, 0.5 * growth}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET

// Constants of a formula, as its parameters give them, in both types that it may compute in: a kernel that had to
// convert one would keep it in a register, of which a GPU's thread has few.
#pragma once
#include "core/instruction_set.h"

namespace fusedloss::inline FUSEDLOSS_SET {

class Constant {
 public:
  FUSEDLOSS_INLINE Constant(double x) : wide_(x), narrow_(float(x)) {}
  FUSEDLOSS_INLINE operator double() const { return wide_; }
  FUSEDLOSS_INLINE operator float() const { return narrow_; }
  FUSEDLOSS_INLINE Constant operator-() const { return {-wide_, -narrow_}; }

 private:
  FUSEDLOSS_INLINE Constant(double wide, float narrow) : wide_(wide), narrow_(narrow) {}
  double wide_;
  float narrow_;
};

}  // namespace fusedloss::inline FUSEDLOSS_SET

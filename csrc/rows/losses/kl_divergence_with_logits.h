#pragma once
#include "rows/losses/kl_divergence.h"

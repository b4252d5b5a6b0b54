#pragma once
#include "rows/losses/js_divergence.h"

// Code that is compiled once for every instruction set lives in an inline namespace with the set's name,
//   namespace fusedloss::inline FUSEDLOSS_SET { ... }
// Without it the linker would take the copies of a function for one, and keep any of them for all processors.
#pragma once

#ifndef FUSEDLOSS_SET
#define FUSEDLOSS_SET DEFAULT
#define FUSEDLOSS_REGISTER_BYTES 16
#endif

// Inlined always: a call would hide from the compiler which results are not used. Under nvcc for the GPU too.
#ifdef __CUDACC__
#define FUSEDLOSS_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDLOSS_INLINE [[gnu::always_inline]] inline
#endif

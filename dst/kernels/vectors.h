// Vectors of the machine's own width.
#pragma once
#include <stdint.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / 4)

typedef float vec __attribute__((vector_size(BYTES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(BYTES)));
#define LOAD(p) (*(const vec *)(p))
#define STORE(p) (*(vec *)(p))
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS static inline __attribute__((always_inline))

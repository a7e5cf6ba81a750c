#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define PATH avx2
#define PATH_AVX2
#include "path.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_machine;
#endif

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx2")
#endif
#define PATH avx512
#define PATH_AVX512
#include "path.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_machine;
#endif

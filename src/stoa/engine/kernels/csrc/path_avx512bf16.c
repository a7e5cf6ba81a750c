#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma,avx2")
#endif
#define PATH avx512bf16
#define PATH_AVX512BF16
#include "path.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_machine;
#endif

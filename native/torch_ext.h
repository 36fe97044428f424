// What tch does not wrap, behind a C interface.
//
// Every function returns 0, or 1 with a message in `semoe_last_error()` (one per thread).
// Tensors cross as `at::Tensor*`, which is what `tch::Tensor::as_ptr` gives.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

const char *semoe_last_error();

// The version that this was compiled against, such as "2.11.0".
const char *semoe_torch_version();

// Runs `body(ctx, begin, end)` over [0, n) on libtorch's intra-op threads.
int semoe_parallel_for(int64_t n, int64_t grain, void (*body)(void *, int64_t, int64_t),
                       void *ctx);

// Sets how many intra-op threads the calling thread's parallel regions use.
int semoe_set_threads(int n);

// From now on CPU tensors get their memory from `allocate` (aligned to 64 bytes, NULL where there
// is none) and give it back to `release`, which is also called with NULL.
int semoe_set_allocator(void *(*allocate)(size_t), void (*release)(void *));

}

// See torch_ext.h for the contract.
#include "torch_ext.h"

#include <omp.h>
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <torch/version.h>

#include <string>

namespace {

thread_local std::string last_error;

template <class F> int guarded(F body) {
  try {
    body();
    return 0;
  } catch (const std::exception &e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

struct Allocator final : c10::Allocator {
  void *(*take)(size_t) = nullptr;
  void (*give)(void *) = nullptr;

  c10::DataPtr allocate(size_t n) override {
    void *data = n == 0 ? nullptr : take(n);
    TORCH_CHECK(data || n == 0, "there is no memory for a tensor of ", n, " bytes");
    return {data, data, give, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return give; }
  void copy_data(void *to, const void *from, size_t n) const override {
    default_copy_data(to, from, n);
  }
};

} // namespace

extern "C" {

const char *semoe_last_error() { return last_error.c_str(); }

const char *semoe_torch_version() { return TORCH_VERSION; }

int semoe_parallel_for(int64_t n, int64_t grain, void (*body)(void *, int64_t, int64_t),
                       void *ctx) {
  return guarded([&] {
    at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(ctx, begin, end); });
  });
}

int semoe_set_threads(int n) {
  return guarded([&] {
    // Of this thread alone. at::set_num_threads also sets MKL's count for the whole process, so a
    // thread that wants one would take the others' from them in the middle of a run (law 4).
    at::get_num_threads();  // libtorch's own first setting of this thread comes before ours
    omp_set_num_threads(n);
  });
}

int semoe_set_allocator(void *(*allocate)(size_t), void (*release)(void *)) {
  return guarded([&] {
    static Allocator ours;
    ours.take = allocate;
    ours.give = release;
    c10::SetCPUAllocator(&ours, /*priority=*/1);
  });
}
}

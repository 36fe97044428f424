// See torch_ext.h for the contract.
#include "torch_ext.h"

#include <omp.h>
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/autograd/autograd.h>
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

int semoe_autograd_grad(void *const *outputs, void *const *grad_outputs, size_t n_outputs,
                        void *const *inputs, size_t n_inputs, int retain_graph, void **grads) {
  return guarded([&] {
    torch::autograd::variable_list outs, gouts, ins;
    for (size_t i = 0; i < n_outputs; i++) {
      outs.push_back(*static_cast<at::Tensor *>(outputs[i]));
      gouts.push_back(grad_outputs[i] ? *static_cast<at::Tensor *>(grad_outputs[i])
                                      : at::Tensor());
    }
    for (size_t i = 0; i < n_inputs; i++)
      ins.push_back(*static_cast<at::Tensor *>(inputs[i]));
    auto got = torch::autograd::grad(outs, ins, gouts, retain_graph != 0,
                                     /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < n_inputs; i++)
      grads[i] = got[i].defined() ? new at::Tensor(got[i]) : nullptr;
  });
}

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

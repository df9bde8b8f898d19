// What the emulated driver and a kernel image compiled by the host compiler know of each other.
#ifndef TTSNN_DEVICE_H
#define TTSNN_DEVICE_H

#include <cstddef>
#include <cstdint>

struct alignas(16) uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
};

namespace ttsnn {

// The state of the CUDA thread that the host thread executes at the moment.
struct Thread {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  char* shared;          // the block's shared memory, poisoned when the block begins
  const uint32_t* order; // the block's threads in the order in which they run
};

// Whole layout of one parameter or shared array, for checks and for captured launches.
struct Parameter {
  uint32_t size;
  bool pointer;
  bool writes;  // a pointer to what is not const
};

struct SharedArray {
  const char* name;
  uint64_t offset, size;
};

struct Kernel {
  const char* name;
  void (*run_one)(void** args);  // the current thread
  void (*run_all)(void** args);  // every thread of the block, one after another
  const Parameter* parameters;
  uint32_t parameter_count;
  const SharedArray* shared;
  uint32_t shared_count;
  uint64_t shared_bytes;   // of the static arrays and the gaps that guard them
  uint32_t max_threads;    // __launch_bounds__, or 1024
  bool cooperates;         // has barriers or warp operations: threads are fibers
};

struct Image {
  uint32_t version;
  uint32_t kernel_count;
  const Kernel* kernels;
};

constexpr uint32_t kImageVersion = 1;
constexpr uint64_t kSharedGap = 64;  // guard bytes behind each shared array

}  // namespace ttsnn

extern "C" {
extern __thread ttsnn::Thread ttsnn_thread __attribute__((tls_model("initial-exec")));
// __syncthreads of the source line `line`; returns when every thread of the block is there.
void ttsnn_barrier(int line);
// How many threads of the block gave a predicate that is true.
int ttsnn_barrier_count(int line, int predicate);
// Gives `value` to the warp and waits for the lanes of `mask`; result: their 32 values.
void ttsnn_exchange(int line, uint32_t mask, uint64_t value, uint64_t* values);
uint32_t ttsnn_active_mask(int line);
void ttsnn_trap(int line, const char* what);
}

#endif

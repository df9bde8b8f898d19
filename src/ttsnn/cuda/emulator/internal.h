// Parts of the emulated driver: memory.cc, launch.cc, fiber.cc; api.cc has CUDA's own functions.
#ifndef TTSNN_INTERNAL_H
#define TTSNN_INTERNAL_H

#include <cstdarg>
#include <mutex>
#include <string>
#include <vector>

#include "include/ttsnn_device.h"

namespace ttsnn {

// CUDA's numbers; those of the driver and of the runtime are the same.
enum Status : int {
  kOk = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kNoBinary = 209,
  kInvalidHandle = 400,
  kNotFound = 500,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kAssert = 710,
  kLaunchFailure = 719,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
};

struct Settings {
  int major = 9, minor = 0, processors = 4;
  uint64_t memory = uint64_t(4) << 30;
  uint64_t shared_static = 48 << 10, shared_optin = 227 << 10;
  int order = 0;  // 0 forward, 1 reverse, 2 both and compare
  int threads = 1;
};
extern Settings settings;

// --- reports ------------------------------------------------------------------------------------

// What went wrong first since the report was taken, as JSON; "" for nothing.
struct Report {
  std::string kind, text, kernel;
  uint3 block{}, thread{};
  uint64_t address = 0;
};
void report(Report r);
std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string report_json();   // empties it
std::string report_text();   // leaves it

// --- memory -------------------------------------------------------------------------------------

struct Allocation {
  char* base;      // what the program got
  uint64_t size;
  char* mapping;   // guard, slack, data, slack, guard
  uint64_t mapped;
  uint64_t id;
};
Status allocate(uint64_t size, void** out);
Status release(void* pointer);
uint64_t allocated_bytes();
// The allocation that holds an address, by value; base nullptr: none.
Allocation find(const void* address);
// "12 bytes behind the end of allocation 3 (4096 bytes)"
std::string describe(uint64_t address);
// Reports bytes of the slack that changed.
bool slack_intact(const Allocation& a, const char* kernel);

// --- launches -----------------------------------------------------------------------------------

struct Function {
  const Kernel* kernel;
  int64_t dynamic_limit;  // cuFuncSetAttribute
};
struct Launch {
  const Function* function;
  dim3 grid, block;
  uint64_t dynamic_bytes;
  std::vector<std::vector<char>> arguments;
};
Status check_launch(const Launch& launch);
Status run(const Launch& launch);
uint64_t launches();

// --- threads of a block as fibers ---------------------------------------------------------------

class Block;
struct Fault {  // how a block ended early
  bool failed = false;
  Report report;
};
// Runs the block of ttsnn_thread to its end.
void run_cooperating(const Kernel& kernel, void** args, Fault& fault);
void run_independent(const Kernel& kernel, void** args, Fault& fault);
// Leaves the block from inside a kernel; signal handlers may call it.
[[noreturn]] void abandon(Report r);
bool inside_kernel();

}  // namespace ttsnn

#endif

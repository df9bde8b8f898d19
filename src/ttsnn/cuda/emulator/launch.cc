// Launches: the blocks of a grid over host threads, checks before and after.

#include <atomic>
#include <cstring>
#include <thread>

#include "internal.h"

extern "C" {
__thread ttsnn::Thread ttsnn_thread __attribute__((tls_model("initial-exec")));
}

namespace ttsnn {

Settings settings;

namespace {

std::atomic<uint64_t> launch_count{0};
std::mutex report_mutex, launch_mutex;
Report current;
bool reported = false;

struct Grid {
  const Launch& launch;
  const std::vector<void*>& args;
  bool reverse;
  std::vector<uint32_t> order;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  Fault fault;
  std::mutex mutex;
};

// Guard bytes behind each shared array and behind the dynamic one.
struct Guard {
  uint64_t offset, size;
  const char* name;
};

std::vector<Guard> guards(const Kernel& k, uint64_t dynamic) {
  std::vector<Guard> out;
  for (uint32_t i = 0; i < k.shared_count; ++i)
    out.push_back({k.shared[i].offset + k.shared[i].size, kSharedGap, k.shared[i].name});
  if (dynamic) out.push_back({k.shared_bytes + dynamic, kSharedGap, "dynamic shared memory"});
  return out;
}

constexpr unsigned char kSharedPoison = 0xff, kSharedGuard = 0xa5;

void work(Grid& grid) {
  const Launch& launch = grid.launch;
  const Kernel& kernel = *launch.function->kernel;
  const dim3 g = launch.grid;
  const uint64_t blocks = uint64_t(g.x) * g.y * g.z;
  const uint64_t bytes = kernel.shared_bytes + launch.dynamic_bytes;
  const auto watched = guards(kernel, launch.dynamic_bytes);
  std::vector<char> room(bytes + kSharedGap + 128);
  char* shared = room.data() + (128 - uint64_t(room.data()) % 128) % 128;
  const Thread before = ttsnn_thread;
  ttsnn_thread.block_dim = launch.block;
  ttsnn_thread.grid_dim = g;
  ttsnn_thread.shared = shared;
  ttsnn_thread.order = grid.order.data();
  std::vector<void*> args = grid.args;
  Fault fault;
  for (uint64_t i; !grid.stop && (i = grid.next++) < blocks;) {
    const uint64_t b = grid.reverse ? blocks - 1 - i : i;
    ttsnn_thread.block = {unsigned(b % g.x), unsigned(b / g.x % g.y),
                          unsigned(b / (uint64_t(g.x) * g.y))};
    if (bytes) std::memset(shared, kSharedPoison, bytes);
    for (const Guard& w : watched) std::memset(shared + w.offset, kSharedGuard, w.size);
    (kernel.cooperates ? run_cooperating : run_independent)(kernel, args.data(), fault);
    for (const Guard& w : watched)
      for (uint64_t k = 0; k < w.size && !fault.failed; ++k)
        if (static_cast<unsigned char>(shared[w.offset + k]) != kSharedGuard) {
          fault.failed = true;
          fault.report = {"out of bounds",
                          format("kernel %s wrote %llu bytes behind the end of the shared array %s",
                                 kernel.name, (unsigned long long)k, w.name),
                          kernel.name, ttsnn_thread.block, {}, 0};
        }
    if (fault.failed) {
      std::lock_guard<std::mutex> lock(grid.mutex);
      if (!grid.fault.failed) grid.fault = fault;
      grid.stop = true;
    }
  }
  ttsnn_thread = before;
}

Status run_grid(const Launch& launch, const std::vector<void*>& args, bool reverse) {
  Grid grid{launch, args, reverse, {}, {}, {}, {}, {}};
  const uint32_t threads = launch.block.x * launch.block.y * launch.block.z;
  for (uint32_t i = 0; i < threads; ++i) grid.order.push_back(reverse ? threads - 1 - i : i);
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  std::vector<std::thread> helpers;
  for (uint64_t t = 1; t < std::min<uint64_t>(settings.threads, blocks); ++t)
    helpers.emplace_back([&] { work(grid); });
  work(grid);
  for (auto& h : helpers) h.join();
  if (!grid.fault.failed) return kOk;
  report(grid.fault.report);
  return grid.fault.report.kind == "trap" ? kAssert : kIllegalAddress;
}

}  // namespace

std::string format(const char* text, ...) {
  char out[1024];
  va_list args;
  va_start(args, text);
  vsnprintf(out, sizeof out, text, args);
  va_end(args);
  return out;
}

void report(Report r) {
  std::lock_guard<std::mutex> lock(report_mutex);
  if (!reported) current = std::move(r), reported = true;
}

std::string report_text() {
  std::lock_guard<std::mutex> lock(report_mutex);
  return reported ? current.text : "";
}

std::string report_json() {
  std::lock_guard<std::mutex> lock(report_mutex);
  if (!reported) return "";
  reported = false;
  const Report& r = current;
  return format("{\"kind\": \"%s\", \"kernel\": \"%s\", \"block\": [%u, %u, %u], "
                "\"thread\": [%u, %u, %u], \"address\": %llu, \"text\": \"%s\"}",
                r.kind.c_str(), r.kernel.c_str(), r.block.x, r.block.y, r.block.z, r.thread.x,
                r.thread.y, r.thread.z, (unsigned long long)r.address, r.text.c_str());
}

uint64_t launches() { return launch_count; }

// The limits of a real device.
Status check_launch(const Launch& launch) {
  const Kernel& k = *launch.function->kernel;
  const dim3 b = launch.block, g = launch.grid;
  const uint64_t threads = uint64_t(b.x) * b.y * b.z;
  const char* why = nullptr;
  if (threads == 0 || threads > 1024 || b.z > 64) why = "no legal size of a block";
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
    why = "no legal size of a grid";
  if (why == nullptr && threads > k.max_threads) why = "more threads than its __launch_bounds__";
  uint64_t fixed = 0;
  for (uint32_t i = 0; i < k.shared_count; ++i) fixed += k.shared[i].size;
  if (why == nullptr && fixed > settings.shared_static) why = "too much static shared memory";
  const uint64_t limit = std::max<uint64_t>(settings.shared_static - std::min(fixed, settings.shared_static),
                                            uint64_t(launch.function->dynamic_limit));
  if (why == nullptr && launch.dynamic_bytes > limit) why = "too much dynamic shared memory";
  if (why == nullptr) return kOk;
  Report r;
  r.kind = "launch";
  r.kernel = k.name;
  r.text = format("kernel %s: %s (grid %u x %u x %u, block %u x %u x %u, shared %llu + %llu bytes)",
                  k.name, why, g.x, g.y, g.z, b.x, b.y, b.z, (unsigned long long)fixed,
                  (unsigned long long)launch.dynamic_bytes);
  report(r);
  return kInvalidValue;
}

Status run(const Launch& launch) {
  std::lock_guard<std::mutex> lock(launch_mutex);
  ++launch_count;
  const Kernel& kernel = *launch.function->kernel;
  std::vector<void*> args;
  std::vector<Allocation> written;
  for (uint32_t i = 0; i < kernel.parameter_count; ++i) {
    args.push_back(const_cast<char*>(launch.arguments[i].data()));
    if (!kernel.parameters[i].pointer || !kernel.parameters[i].writes) continue;
    const Allocation a = find(*static_cast<void**>(args.back()));
    bool known = a.base == nullptr;
    for (const Allocation& w : written) known |= w.base == a.base;
    if (!known) written.push_back(a);
  }
  const bool twice = settings.order == 2;
  std::vector<std::string> before, after;
  if (twice)
    for (const Allocation& a : written) before.emplace_back(a.base, a.size);
  Status status = run_grid(launch, args, settings.order == 1);
  if (twice && status == kOk) {
    for (size_t i = 0; i < written.size(); ++i) {
      after.emplace_back(written[i].base, written[i].size);
      std::memcpy(written[i].base, before[i].data(), written[i].size);
    }
    status = run_grid(launch, args, true);
    for (size_t i = 0; i < written.size() && status == kOk; ++i) {
      const Allocation& a = written[i];
      if (std::memcmp(a.base, after[i].data(), a.size) == 0) continue;
      uint64_t at = 0;
      while (a.base[at] == after[i][at]) ++at;
      Report r;
      r.kind = "race";
      r.kernel = kernel.name;
      r.address = uint64_t(a.base) + at;
      r.text = format("kernel %s gives other results when its threads run in reverse order "
                      "(a missing barrier, or two threads that write one place): %s",
                      kernel.name, describe(r.address).c_str());
      report(r);
      status = kLaunchFailure;
    }
  }
  for (const Allocation& a : written)
    if (!slack_intact(a, kernel.name)) status = kIllegalAddress;
  return status;
}

}  // namespace ttsnn

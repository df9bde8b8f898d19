// Device memory: each allocation lies between two regions that nobody may touch, its bytes are 0xff
// (a NaN) until they are written, and the bytes up to the regions are watched. All of them lie in an
// arena of addresses that belongs to the device alone, so that an access far outside of its
// allocation faults too, and never meets memory of the process.

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "internal.h"

namespace ttsnn {

namespace {

constexpr uint64_t kAlignment = 256, kGuard = 1 << 20;
// The margin is what a 32-bit index of 4-byte elements reaches.
constexpr uint64_t kArena = uint64_t(1) << 40, kMargin = uint64_t(1) << 34;
constexpr unsigned char kPoison = 0xff, kSlack = 0xa5;

std::mutex mutex;
std::map<uint64_t, Allocation> allocations;  // by base
uint64_t total = 0, next_id = 0;

uint64_t page() {
  static const uint64_t size = uint64_t(sysconf(_SC_PAGESIZE));
  return size;
}

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

void* inaccessible(void* at, uint64_t size) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at == nullptr ? 0 : MAP_FIXED);
  return mmap(at, size, PROT_NONE, flags, -1, 0);
}

// Addresses nobody had before: a freed allocation stays out of reach. An arena that is used up is
// left behind; it holds addresses, no memory.
char* reserve(uint64_t size) {
  static char *next = nullptr, *end = nullptr;
  if (uint64_t(end - next) < size) {
    const uint64_t arena = size + kArena;
    void* mapping = inaccessible(nullptr, arena);
    if (mapping == MAP_FAILED) return nullptr;
    next = static_cast<char*>(mapping) + kMargin;
    end = static_cast<char*>(mapping) + arena - kMargin;
  }
  char* at = next;
  next += size;
  return at;
}

}  // namespace

Status allocate(uint64_t size, void** out) {
  std::lock_guard<std::mutex> lock(mutex);
  *out = nullptr;
  if (size == 0) return kOk;
  if (size > settings.memory || total > settings.memory - size) return kOutOfMemory;
  const uint64_t data = round_up(round_up(size, kAlignment), page()), mapped = data + 2 * kGuard;
  char* mapping = reserve(mapped);
  if (mapping == nullptr) return kOutOfMemory;
  char* first = mapping + kGuard;
  if (mprotect(first, data, PROT_READ | PROT_WRITE) != 0) return kOutOfMemory;
  // As late as alignment allows: what lies behind the end faults, or changes at most 255 bytes.
  char* base = first + (data - round_up(size, kAlignment));
  std::memset(first, kSlack, base - first);
  std::memset(base, kPoison, size);
  std::memset(base + size, kSlack, first + data - (base + size));
  allocations[uint64_t(base)] = {base, size, mapping, mapped, ++next_id};
  total += size;
  *out = base;
  return kOk;
}

Status release(void* pointer) {
  if (pointer == nullptr) return kOk;
  Allocation a{};
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = allocations.find(uint64_t(pointer));
    if (found == allocations.end()) return kInvalidValue;
    a = found->second;
    allocations.erase(found);
    total -= a.size;
  }
  inaccessible(a.mapping, a.mapped);  // gives the pages back, keeps the addresses
  return kOk;
}

uint64_t allocated_bytes() {
  std::lock_guard<std::mutex> lock(mutex);
  return total;
}

Allocation find(const void* address) {
  std::lock_guard<std::mutex> lock(mutex);
  auto next = allocations.upper_bound(uint64_t(address));
  if (next == allocations.begin()) return {};
  const Allocation& a = std::prev(next)->second;
  return uint64_t(address) < uint64_t(a.base) + a.size ? a : Allocation{};
}

std::string describe(uint64_t address) {
  std::lock_guard<std::mutex> lock(mutex);
  if (address < page()) return "a null pointer";
  const Allocation* near = nullptr;
  uint64_t distance = 1 << 20;
  bool behind = false;
  auto next = allocations.upper_bound(address);
  if (next != allocations.begin()) {
    const Allocation& a = std::prev(next)->second;
    const uint64_t end = uint64_t(a.base) + a.size;
    if (address < end)
      return format("byte %llu of allocation %llu (%llu bytes)",
                    (unsigned long long)(address - uint64_t(a.base)), (unsigned long long)a.id,
                    (unsigned long long)a.size);
    if (address - end < distance) near = &a, distance = address - end, behind = true;
  }
  if (next != allocations.end() && uint64_t(next->second.base) - address < distance)
    near = &next->second, distance = uint64_t(next->second.base) - address, behind = false;
  if (near == nullptr) return "no allocation";
  return format("%llu bytes %s allocation %llu (%llu bytes)", (unsigned long long)distance,
                behind ? "behind the end of" : "before", (unsigned long long)near->id,
                (unsigned long long)near->size);
}

bool slack_intact(const Allocation& a, const char* kernel) {
  const char *first = a.mapping + kGuard, *last = a.mapping + a.mapped - kGuard;
  auto changed = [&](const char* from, const char* to) -> const char* {
    for (const char* p = from; p < to; ++p)
      if (static_cast<unsigned char>(*p) != kSlack) return p;
    return nullptr;
  };
  const char* bad = changed(first, a.base);
  if (bad == nullptr) bad = changed(a.base + a.size, last);
  if (bad == nullptr) return true;
  Report r;
  r.kind = "out of bounds";
  r.kernel = kernel;
  r.address = uint64_t(bad);
  r.text = format("kernel %s wrote out of bounds: %s", kernel, describe(r.address).c_str());
  report(r);
  // Watched on: the next finding is a new one.
  std::memset(const_cast<char*>(first), kSlack, a.base - first);
  std::memset(a.base + a.size, kSlack, last - (a.base + a.size));
  return false;
}

}  // namespace ttsnn

// The threads of one block on one host thread. Those of a kernel with barriers or warp operations
// are fibers that give way where they wait; others run one after another.

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "internal.h"

#if defined(__x86_64__) && !defined(TTSNN_UCONTEXT)
#define TTSNN_SWITCH 1
// Saves what a function must keep, changes the stack, restores.
asm(R"(
.text
.globl ttsnn_switch
.hidden ttsnn_switch
.type ttsnn_switch, @function
ttsnn_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ttsnn_switch, .-ttsnn_switch
)");
extern "C" void ttsnn_switch(void** save, void* to);
#endif

namespace ttsnn {

namespace {

constexpr uint64_t kStack = 256 << 10;

enum class State { kReady, kBarrier, kExchange, kMask, kDone };

struct Fiber {
#ifdef TTSNN_SWITCH
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  State state;
  int line;
  uint32_t lane, warp;
  uint32_t mask;  // result of the active mask
  int predicate;
};

// Lanes of a warp that exchange values.
struct Exchange {
  uint32_t mask = 0, arrived = 0, left = 0;
  bool open = false, complete = false;
  uint64_t values[32];
};

void* stack_room(uint64_t count) {
  void* room = mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) abort();
  for (uint64_t i = 0; i < count; ++i)  // the lowest page of each stack is its guard
    mprotect(static_cast<char*>(room) + i * kStack, 4096, PROT_NONE);
  return room;
}

// Stacks outlive launches: their pages stay in memory.
struct Stacks {
  char* room = nullptr;
  uint64_t count = 0;
  char* top(uint64_t i) { return room + (i + 1) * kStack; }
};
std::mutex spare_mutex;
std::vector<Stacks> spare;

Stacks take_stacks(uint64_t count) {
  Stacks s;
  {
    std::lock_guard<std::mutex> lock(spare_mutex);
    if (!spare.empty()) s = spare.back(), spare.pop_back();
  }
  if (s.count < count) {
    if (s.room) munmap(s.room, s.count * kStack);
    s = {static_cast<char*>(stack_room(count)), count};
  }
  return s;
}

void give_stacks(Stacks s) {
  std::lock_guard<std::mutex> lock(spare_mutex);
  spare.push_back(s);
}

}  // namespace

class Block {
 public:
  Block(const Kernel& kernel, void** args)
      : kernel_(kernel), args_(args), size_(ttsnn_thread.block_dim.x * ttsnn_thread.block_dim.y *
                                            ttsnn_thread.block_dim.z),
        fibers_(size_), exchanges_((size_ + 31) / 32), stacks_(take_stacks(size_)) {
    for (uint32_t i = 0; i < size_; ++i) start(i);
  }
  ~Block() { give_stacks(stacks_); }

  void run();
  int barrier(int line, int predicate);
  void exchange(int line, uint32_t mask, uint64_t value, uint64_t* values);
  uint32_t active_mask(int line);

 private:
  void start(uint32_t i);
  void enter(uint32_t i);
  void leave();
  [[noreturn]] static void main();
  void release_barrier(uint32_t live);
  bool release_masks();
  [[noreturn]] void stuck();
  uint32_t lanes(uint32_t warp) const {
    const uint32_t n = size_ - warp * 32;
    return n >= 32 ? 0xffffffffu : (1u << n) - 1;
  }

  const Kernel& kernel_;
  void** args_;
  uint32_t size_, current_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<std::vector<std::unique_ptr<Exchange>>> exchanges_;
  Stacks stacks_;
  int count_ = 0;
#ifdef TTSNN_SWITCH
  void* scheduler_ = nullptr;
#else
  ucontext_t scheduler_;
#endif
};

namespace {

// Of the host thread; behind a pointer, since the room for variables of threads is scarce in a
// library that is loaded late.
struct Host {
  sigjmp_buf back;
  const Kernel* kernel = nullptr;
  Block* block = nullptr;
  bool inside = false;
  Report pending;
  int signal = 0;
  uint64_t address = 0;
  bool write = false;
};
thread_local Host* host_pointer = nullptr;

Host& host() {
  if (host_pointer == nullptr) host_pointer = new Host;
  return *host_pointer;
}

}  // namespace

bool inside_kernel() { return host_pointer != nullptr && host_pointer->inside; }

void abandon(Report r) {
  host().pending = std::move(r);
  host().signal = 0;
  siglongjmp(host().back, 1);
}

void Block::start(uint32_t i) {
  Fiber& f = fibers_[i];
  f.state = State::kReady;
  f.warp = i / 32;
  f.lane = i % 32;
#ifdef TTSNN_SWITCH
  void** top = reinterpret_cast<void**>(stacks_.top(i));
  *--top = nullptr;  // aligned as behind a call
  *--top = reinterpret_cast<void*>(&Block::main);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack = {stacks_.top(i) - kStack + 4096, 0, kStack - 4096};
  f.context.uc_link = nullptr;
  makecontext(&f.context, reinterpret_cast<void (*)()>(&Block::main), 0);
#endif
}

void Block::main() {
  Block& b = *host().block;
  b.kernel_.run_one(b.args_);
  b.fibers_[b.current_].state = State::kDone;
  b.leave();
  abort();
}

void Block::enter(uint32_t i) {
  const dim3 d = ttsnn_thread.block_dim;
  current_ = i;
  ttsnn_thread.thread = {i % d.x, i / d.x % d.y, i / (d.x * d.y)};
#ifdef TTSNN_SWITCH
  ttsnn_switch(&scheduler_, fibers_[i].stack_pointer);
#else
  swapcontext(&scheduler_, &fibers_[i].context);
#endif
}

void Block::leave() {
#ifdef TTSNN_SWITCH
  ttsnn_switch(&fibers_[current_].stack_pointer, scheduler_);
#else
  swapcontext(&fibers_[current_].context, &scheduler_);
#endif
}

void Block::run() {
  for (;;) {
    bool ran = false;
    uint32_t waiting = 0, done = 0;
    for (uint32_t k = 0; k < size_; ++k) {
      const uint32_t i = ttsnn_thread.order[k];
      if (fibers_[i].state == State::kReady) enter(i), ran = true;
    }
    for (const Fiber& f : fibers_) {
      waiting += f.state == State::kBarrier;
      done += f.state == State::kDone;
    }
    if (done == size_) return;
    if (waiting == size_)
      release_barrier(waiting);
    else if (!ran && !release_masks())
      stuck();
  }
}

void Block::release_barrier(uint32_t live) {
  count_ = 0;
  for (const Fiber& f : fibers_) {
    count_ += f.predicate;
    if (f.line != fibers_[0].line) stuck();
  }
  for (Fiber& f : fibers_) f.state = State::kReady;
}

// Lanes that ask at one place who is active are active together.
bool Block::release_masks() {
  bool any = false;
  for (Fiber& f : fibers_) {
    if (f.state != State::kMask) continue;
    uint32_t together = 0;
    const uint32_t first = f.warp * 32, last = std::min(first + 32, size_);
    for (uint32_t i = first; i < last; ++i)
      if (fibers_[i].state == State::kMask && fibers_[i].line == f.line)
        together |= 1u << fibers_[i].lane;
    for (uint32_t i = first; i < last; ++i)
      if ((together >> (i - first)) & 1u) {
        fibers_[i].mask = together;
        fibers_[i].state = State::kReady;
      }
    any = true;
  }
  return any;
}

void Block::stuck() {
  uint32_t done = 0;
  const Fiber *one = nullptr, *other = nullptr;
  for (const Fiber& f : fibers_) {
    if (f.state == State::kDone) {
      ++done;
    } else if (one == nullptr) {
      one = &f;
    } else if (other == nullptr && (f.state != one->state || f.line != one->line)) {
      other = &f;
    }
  }
  const uint32_t i = uint32_t(one - fibers_.data());
  const dim3 d = ttsnn_thread.block_dim;
  const char* what = one->state == State::kBarrier ? "__syncthreads" : "a warp operation";
  Report r;
  r.kind = "divergence";
  r.kernel = kernel_.name;
  r.block = ttsnn_thread.block;
  r.thread = {i % d.x, i / d.x % d.y, i / (d.x * d.y)};
  r.text = format("kernel %s: threads wait in %s of line %d that others never reach (%u of %u have "
                  "returned",
                  kernel_.name, what, one->line, done, size_);
  if (other != nullptr)
    r.text += format(", some wait in %s of line %d",
                     other->state == State::kBarrier ? "__syncthreads" : "a warp operation",
                     other->line);
  r.text += ")";
  abandon(std::move(r));
}

int Block::barrier(int line, int predicate) {
  Fiber& f = fibers_[current_];
  f.state = State::kBarrier;
  f.line = line;
  f.predicate = predicate;
  leave();
  return count_;
}

void Block::exchange(int line, uint32_t mask, uint64_t value, uint64_t* values) {
  Fiber& f = fibers_[current_];
  const uint32_t bit = 1u << f.lane;
  mask &= lanes(f.warp);
  mask |= bit;
  auto& all = exchanges_[f.warp];
  Exchange* mine = nullptr;
  for (auto& e : all)
    if (e->open && !e->complete && e->mask == mask && !(e->arrived & bit)) mine = e.get();
  if (mine == nullptr) {
    for (auto& e : all)
      if (!e->open) mine = e.get();
    if (mine == nullptr) mine = all.emplace_back(std::make_unique<Exchange>()).get();
    mine->mask = mask;
    mine->arrived = mine->left = 0;
    mine->open = true;
    mine->complete = false;
    std::memset(mine->values, 0xff, sizeof mine->values);
  }
  mine->values[f.lane] = value;
  mine->arrived |= bit;
  if (mine->arrived == mask) {
    mine->complete = true;
    const uint32_t first = f.warp * 32;
    for (uint32_t k = 0; k < 32 && first + k < size_; ++k)
      if (k != f.lane && ((mask >> k) & 1u)) fibers_[first + k].state = State::kReady;
  } else {
    f.state = State::kExchange;
    f.line = line;
    leave();
  }
  std::memcpy(values, mine->values, sizeof mine->values);
  mine->left |= bit;
  if (mine->left == mask) mine->open = false;
}

uint32_t Block::active_mask(int line) {
  Fiber& f = fibers_[current_];
  f.state = State::kMask;
  f.line = line;
  leave();
  return f.mask;
}

// --- faults -------------------------------------------------------------------------------------

namespace {

struct sigaction old_actions[3];
const int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};

void on_signal(int number, siginfo_t* info, void* context) {
  if (!inside_kernel()) {  // not ours: as if we weren't here
    for (int i = 0; i < 3; ++i)
      if (kSignals[i] == number) sigaction(number, &old_actions[i], nullptr);
    return;
  }
  host().signal = number;
  host().address = uint64_t(info->si_addr);
#ifdef __x86_64__
  host().write = (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#endif
  siglongjmp(host().back, 1);
}

// The handlers, and a stack for them: a fiber's own may be full.
class Handlers {
 public:
  Handlers() {
    static thread_local std::unique_ptr<char[]> room(new char[64 << 10]);
    stack_t stack{};
    stack.ss_sp = room.get();
    stack.ss_size = 64 << 10;
    sigaltstack(&stack, &old_stack_);
    std::lock_guard<std::mutex> lock(mutex_);
    if (users_++ == 0) {
      struct sigaction action {};
      action.sa_sigaction = on_signal;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
      for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &old_actions[i]);
    }
  }
  ~Handlers() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (--users_ == 0)
        for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
    }
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  stack_t old_stack_{};
  static std::mutex mutex_;
  static int users_;
};
std::mutex Handlers::mutex_;
int Handlers::users_ = 0;

Report fault_report(const Kernel& kernel) {
  Report r;
  if (host().signal == 0) {
    r = std::move(host().pending);
  } else if (host().signal == SIGFPE) {
    r.kind = "arithmetic";
    r.text = format("kernel %s divides an integer by zero", kernel.name);
  } else {
    r.kind = "out of bounds";
    r.address = host().address;
    r.text = format("kernel %s %s out of bounds: %s", kernel.name, host().write ? "wrote" : "read",
                    describe(r.address).c_str());
  }
  r.kernel = kernel.name;
  r.block = ttsnn_thread.block;
  r.thread = ttsnn_thread.thread;
  r.text += format(" [block (%u, %u, %u), thread (%u, %u, %u)]", r.block.x, r.block.y, r.block.z,
                   r.thread.x, r.thread.y, r.thread.z);
  return r;
}

template <class F>
void guarded(const Kernel& kernel, Fault& fault, F body) {
  Handlers handlers;
  host().kernel = &kernel;
  if (sigsetjmp(host().back, 0) == 0) {
    host().inside = true;
    body();
    host().inside = false;
  } else {
    host().inside = false;
    fault.failed = true;
    fault.report = fault_report(kernel);
  }
  host().block = nullptr;
}

}  // namespace

void run_independent(const Kernel& kernel, void** args, Fault& fault) {
  guarded(kernel, fault, [&] { kernel.run_all(args); });
}

void run_cooperating(const Kernel& kernel, void** args, Fault& fault) {
  Block block(kernel, args);
  guarded(kernel, fault, [&] {
    host().block = &block;
    block.run();
  });
}

}  // namespace ttsnn

extern "C" {

void ttsnn_barrier(int line) { ttsnn::host().block->barrier(line, 0); }

int ttsnn_barrier_count(int line, int predicate) {
  return ttsnn::host().block->barrier(line, predicate);
}

void ttsnn_exchange(int line, uint32_t mask, uint64_t value, uint64_t* values) {
  ttsnn::host().block->exchange(line, mask, value, values);
}

uint32_t ttsnn_active_mask(int line) { return ttsnn::host().block->active_mask(line); }

void ttsnn_trap(int line, const char* what) {
  ttsnn::Report r;
  r.kind = "trap";
  r.text = ttsnn::format("kernel %s: %s in line %d", ttsnn::host().kernel->name, what, line);
  ttsnn::abandon(std::move(r));
}

}

// CUDA's functions, as far as TVM's runtime calls them. All of them finish at once; streams
// matter while one is captured.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>

#include "internal.h"

using namespace ttsnn;

namespace {

struct Module {
  void* library;
  int file;  // open as long as the library is loaded, so that its path is no other library's
  std::vector<std::unique_ptr<Function>> functions;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Step {  // of a graph: a launch, or a copy
  std::unique_ptr<Launch> launch;
  Copy copy{};
};
using Graph = std::vector<Step>;

struct Stream {
  std::shared_ptr<Graph> capturing;
};

struct Event {
  std::chrono::steady_clock::time_point time;
};

std::mutex mutex;
std::map<std::string, std::pair<int, int>> injected;  // function → status, calls before it
thread_local int last = 0;
uint64_t graph_launches = 0;
int captures = 0;

// The status that was injected for a function.
bool fails(const char* function, int& status) {
  std::lock_guard<std::mutex> lock(mutex);
  auto found = injected.find(function);
  if (found == injected.end()) return false;
  if (found->second.second > 0) return --found->second.second, false;
  status = found->second.first;
  return true;
}

int done(int status) {
  if (status != kOk) last = status;
  return status;
}

#define ENTER                                                    \
  do {                                                           \
    int injected_status = 0;                                     \
    if (fails(__func__, injected_status)) return done(injected_status); \
  } while (false)

const std::pair<int, std::pair<const char*, const char*>> kNames[] = {
    {0, {"SUCCESS", "no error"}},
    {1, {"INVALID_VALUE", "invalid argument"}},
    {2, {"OUT_OF_MEMORY", "out of memory"}},
    {35, {"INSUFFICIENT_DRIVER", "CUDA driver version is insufficient for CUDA runtime version"}},
    {100, {"NO_DEVICE", "no CUDA-capable device is detected"}},
    {101, {"INVALID_DEVICE", "invalid device ordinal"}},
    {200, {"INVALID_IMAGE", "device kernel image is invalid"}},
    {209, {"NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
    {222, {"UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain"}},
    {400, {"INVALID_HANDLE", "invalid resource handle"}},
    {500, {"NOT_FOUND", "named symbol not found"}},
    {700, {"ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {701, {"LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
    {710, {"ASSERT", "device-side assert triggered"}},
    {719, {"LAUNCH_FAILED", "unspecified launch failure"}},
    {801, {"NOT_SUPPORTED", "operation not supported"}},
    {900, {"STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
};

// Texts live as long as the process: callers keep pointers to them.
const char* lasting(std::string text) {
  static std::map<std::string, int> texts;
  std::lock_guard<std::mutex> lock(mutex);
  return texts.emplace(std::move(text), 0).first->first.c_str();
}

const char* name_of(int status, bool text, const char* prefix) {
  std::string out = text ? "unknown error" : std::string(prefix) + "UNKNOWN";
  for (const auto& n : kNames)
    if (n.first == status) out = text ? n.second.second : prefix + std::string(n.second.first);
  const std::string more = report_text();
  if (status >= kIllegalAddress || status == kInvalidValue || status == kNoBinary)
    if (!more.empty()) out += ": " + more;
  return lasting(out);
}

Stream* stream_of(void* stream) {
  static Stream standard;
  const auto number = reinterpret_cast<uintptr_t>(stream);
  return number <= 2 ? &standard : static_cast<Stream*>(stream);  // 1, 2: legacy, per thread
}

int copy_bytes(const Copy& c) {
  for (const void* p : {static_cast<const void*>(c.to), c.from}) {
    const Allocation a = find(p);
    if (a.base == nullptr) continue;
    if (uint64_t(p) + c.bytes > uint64_t(a.base) + a.size) {
      Report r;
      r.kind = "out of bounds";
      r.address = uint64_t(a.base) + a.size;
      r.text = format("a copy of %llu bytes goes past the end of an allocation of %llu bytes",
                      (unsigned long long)c.bytes, (unsigned long long)a.size);
      report(r);
      return kInvalidValue;
    }
  }
  std::memmove(c.to, c.from, c.bytes);
  return kOk;
}

int copy_on(void* to, const void* from, size_t bytes, void* stream) {
  if (auto& graph = stream_of(stream)->capturing) {
    graph->push_back({nullptr, {to, from, bytes}});
    return kOk;
  }
  return copy_bytes({to, from, bytes});
}

}  // namespace

extern "C" {

// --- our own controls ---------------------------------------------------------------------------

void ttsnn_emulator_set(const char* key, int64_t value) {
  const std::string k = key;
  if (k == "order") settings.order = int(value);
  if (k == "threads") settings.threads = int(value);
  if (k == "memory") settings.memory = uint64_t(value);
  if (k == "arch") settings.major = int(value / 10), settings.minor = int(value % 10);
  if (k == "shared_optin") settings.shared_optin = uint64_t(value);
}

// Lets a function of CUDA return a status after so many calls; status 0: as before.
void ttsnn_emulator_fail(const char* function, int status, int after) {
  std::lock_guard<std::mutex> lock(mutex);
  if (status == 0)
    injected.erase(function);
  else
    injected[function] = {status, after};
}

int ttsnn_emulator_report(char* out, uint64_t room) {
  const std::string text = report_json();
  const size_t n = std::min<size_t>(text.size(), room - 1);
  std::memcpy(out, text.data(), n);
  out[n] = 0;
  return int(n);
}

uint64_t ttsnn_emulator_launches() { return launches(); }
uint64_t ttsnn_emulator_graph_launches() { return graph_launches; }
uint64_t ttsnn_emulator_bytes() { return allocated_bytes(); }

// --- errors -------------------------------------------------------------------------------------

const char* cudaGetErrorName(int status) { return name_of(status, false, "cudaError "); }
const char* cudaGetErrorString(int status) { return name_of(status, true, ""); }
int cuGetErrorName(int status, const char** out) {
  *out = name_of(status, false, "CUDA_ERROR_");
  return kOk;
}
int cuGetErrorString(int status, const char** out) {
  *out = name_of(status, true, "");
  return kOk;
}
int cudaGetLastError() {
  const int status = last;
  last = kOk;
  return status;
}
int cudaPeekAtLastError() { return last; }

// --- the device ---------------------------------------------------------------------------------

int cudaGetDeviceCount(int* count) {
  *count = 0;
  ENTER;
  *count = 1;
  return kOk;
}

int cudaGetDevice(int* device) {
  ENTER;
  *device = 0;
  return kOk;
}

int cudaSetDevice(int device) {
  ENTER;
  return done(device == 0 ? kOk : kInvalidDevice);
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  ENTER;
  if (device != 0) return done(kInvalidDevice);
  switch (attribute) {
    case 1: *value = 1024; break;                          // threads per block
    case 2: case 3: *value = 1024; break;                  // block x, y
    case 4: *value = 64; break;                            // block z
    case 5: *value = 0x7fffffff; break;                    // grid x
    case 6: case 7: *value = 65535; break;                 // grid y, z
    case 8: *value = int(settings.shared_static); break;   // shared memory per block
    case 10: *value = 32; break;                           // warp
    case 12: *value = 65536; break;                        // registers per block
    case 13: *value = 1000000; break;                      // clock, kHz
    case 16: *value = settings.processors; break;          // multiprocessors
    case 38: *value = 1 << 20; break;                      // L2 cache
    case 39: *value = 2048; break;                         // threads per multiprocessor
    case 75: *value = settings.major; break;               // compute capability
    case 76: *value = settings.minor; break;
    case 81: *value = int(settings.shared_optin + 1024); break;  // shared per multiprocessor
    case 97: *value = int(settings.shared_optin); break;   // shared per block, opt in
    default: *value = 0;
  }
  return kOk;
}

// The structure's layout is that of CUDA 13: 1008 bytes.
int cudaGetDeviceProperties(void* out, int device) {
  ENTER;
  if (device != 0) return done(kInvalidDevice);
  char* p = static_cast<char*>(out);
  std::memset(p, 0, 1008);
  auto at = [&](size_t offset, auto value) { std::memcpy(p + offset, &value, sizeof value); };
  std::strcpy(p, "CPU emulation of a CUDA device");
  at(288, settings.memory);
  at(296, settings.shared_static);
  at(304, int(65536));
  at(308, int(32));
  at(320, int(1024));
  at(324, int(1024)), at(328, int(1024)), at(332, int(64));
  at(336, int(0x7fffffff)), at(340, int(65535)), at(344, int(65535));
  at(360, settings.major), at(364, settings.minor);
  at(384, settings.processors);
  at(588, int(1));
  at(596, int(1 << 20));
  at(604, int(2048));
  at(624, settings.shared_optin + 1024);
  at(672, settings.shared_optin);
  return kOk;
}

int cuDeviceGetName(char* name, int length, int) {
  ENTER;
  std::strncpy(name, "CPU emulation of a CUDA device", size_t(length) - 1);
  name[length - 1] = 0;
  return kOk;
}

// --- memory -------------------------------------------------------------------------------------

int cudaMalloc(void** out, size_t size) {
  ENTER;
  if (captures > 0) return done(kCaptureUnsupported);
  return done(allocate(size, out));
}

int cudaFree(void* pointer) {
  ENTER;
  if (captures > 0) return done(kCaptureUnsupported);
  const Allocation a = find(pointer);
  if (a.base != nullptr && !slack_intact(a, "(at free)")) return done(kIllegalAddress);
  return done(release(pointer));
}

int cudaMallocHost(void** out, size_t size) {
  ENTER;
  return done(posix_memalign(out, 256, size ? size : 1) == 0 ? kOk : kOutOfMemory);
}

int cudaFreeHost(void* pointer) {
  free(pointer);
  return kOk;
}

int cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  ENTER;
  *total_bytes = settings.memory;
  *free_bytes = settings.memory - std::min(settings.memory, allocated_bytes());
  return kOk;
}

int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void* stream) {
  ENTER;
  return done(copy_on(to, from, bytes, stream));
}

int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void* stream) {
  ENTER;
  return done(copy_on(to, from, bytes, stream));
}

// --- streams, events, graphs --------------------------------------------------------------------

int cudaStreamCreateWithFlags(void** out, unsigned) {
  ENTER;
  *out = new Stream;
  return kOk;
}
int cudaStreamCreate(void** out) { return cudaStreamCreateWithFlags(out, 0); }

int cudaStreamDestroy(void* stream) {
  if (stream_of(stream) == stream) delete static_cast<Stream*>(stream);
  return kOk;
}

int cudaStreamSynchronize(void* stream) {
  ENTER;
  return done(stream_of(stream)->capturing ? kCaptureUnsupported : kOk);
}
int cudaStreamWaitEvent(void*, void*, unsigned) { return kOk; }

int cudaStreamBeginCapture(void* stream, int) {
  ENTER;
  Stream* s = stream_of(stream);
  if (s->capturing || s != stream) return done(kCaptureUnsupported);
  s->capturing = std::make_shared<Graph>();
  ++captures;
  return kOk;
}

int cudaStreamEndCapture(void* stream, void** graph) {
  ENTER;
  Stream* s = stream_of(stream);
  if (!s->capturing) return done(kInvalidValue);
  *graph = new std::shared_ptr<Graph>(std::move(s->capturing));
  s->capturing.reset();
  --captures;
  return kOk;
}

int cudaGraphInstantiate(void** out, void* graph, unsigned long long) {
  ENTER;
  *out = new std::shared_ptr<Graph>(*static_cast<std::shared_ptr<Graph>*>(graph));
  return kOk;
}

int cudaGraphLaunch(void* executable, void* stream) {
  ENTER;
  if (stream_of(stream)->capturing) return done(kCaptureUnsupported);
  ++graph_launches;
  for (const Step& step : **static_cast<std::shared_ptr<Graph>*>(executable)) {
    const int status = step.launch ? run(*step.launch) : copy_bytes(step.copy);
    if (status != kOk) return done(status);
  }
  return kOk;
}

int cudaGraphDestroy(void* graph) {
  delete static_cast<std::shared_ptr<Graph>*>(graph);
  return kOk;
}
int cudaGraphExecDestroy(void* graph) { return cudaGraphDestroy(graph); }

int cudaEventCreate(void** out) {
  *out = new Event;
  return kOk;
}
int cudaEventDestroy(void* event) {
  delete static_cast<Event*>(event);
  return kOk;
}
int cudaEventRecord(void* event, void*) {
  static_cast<Event*>(event)->time = std::chrono::steady_clock::now();
  return kOk;
}
int cudaEventSynchronize(void*) { return kOk; }
int cudaEventElapsedTime(float* ms, void* from, void* to) {
  const auto d = static_cast<Event*>(to)->time - static_cast<Event*>(from)->time;
  *ms = std::chrono::duration<float, std::milli>(d).count();
  return kOk;
}

// --- modules and launches -----------------------------------------------------------------------

int cuModuleLoadData(void** out, const void* data) {
  ENTER;
  const char* bytes = static_cast<const char*>(data);
  if (std::memcmp(bytes, "TTSNNEMU", 8) != 0) {
    Report r;
    r.kind = "image";
    r.text = "the emulated device runs what was compiled for cuda-emulated, this is code for a GPU";
    report(r);
    return done(kNoBinary);
  }
  uint64_t size = 0;
  std::memcpy(&size, bytes + 8, sizeof size);
  const int file = memfd_create("ttsnn-kernels", MFD_CLOEXEC);
  if (file < 0) return done(kOutOfMemory);
  for (uint64_t at = 0; at < size;) {
    const ssize_t n = write(file, bytes + 16 + at, size - at);
    if (n <= 0) return close(file), done(kOutOfMemory);
    at += uint64_t(n);
  }
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  auto* image = library ? static_cast<const Image*>(dlsym(library, "ttsnn_image")) : nullptr;
  if (image == nullptr || image->version != kImageVersion) {
    Report r;
    r.kind = "image";
    r.text = library ? "the kernels were compiled by another ttsnn" : dlerror();
    report(r);
    if (library) dlclose(library);
    close(file);
    return done(kInvalidImage);
  }
  auto* module = new Module{library, file, {}};
  for (uint32_t i = 0; i < image->kernel_count; ++i)
    module->functions.push_back(std::make_unique<Function>(Function{&image->kernels[i], 0}));
  *out = module;
  return kOk;
}

int cuModuleUnload(void* module) {
  auto* m = static_cast<Module*>(module);
  dlclose(m->library);
  close(m->file);
  delete m;
  return kOk;
}

int cuModuleGetFunction(void** out, void* module, const char* name) {
  ENTER;
  for (auto& f : static_cast<Module*>(module)->functions)
    if (std::strcmp(f->kernel->name, name) == 0) return *out = f.get(), kOk;
  return done(kNotFound);
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  ENTER;
  if (attribute == 8) {  // dynamic shared memory
    if (uint64_t(value) > settings.shared_optin) return done(kInvalidValue);
    static_cast<Function*>(function)->dynamic_limit = value;
  }
  return kOk;
}

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  const char* attributes;
  unsigned attribute_count;
};

int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  ENTER;
  if (extra != nullptr || parameters == nullptr) return done(kNotSupported);
  for (unsigned i = 0; i < config->attribute_count; ++i) {
    int id;
    std::memcpy(&id, config->attributes + 72 * i, sizeof id);
    if (id == 4 || id == 2) return done(kNotSupported);  // clusters, cooperative grids
  }
  const auto* f = static_cast<const Function*>(function);
  Launch launch{f,
                {config->grid[0], config->grid[1], config->grid[2]},
                {config->block[0], config->block[1], config->block[2]},
                config->shared_bytes,
                {}};
  for (uint32_t i = 0; i < f->kernel->parameter_count; ++i) {
    const char* value = static_cast<const char*>(parameters[i]);
    launch.arguments.emplace_back(value, value + f->kernel->parameters[i].size);
  }
  const int status = check_launch(launch);
  if (status != kOk) return done(status);
  if (auto& graph = stream_of(config->stream)->capturing) {
    graph->push_back({std::make_unique<Launch>(std::move(launch)), {}});
    return kOk;
  }
  return done(run(launch));
}

int cuTensorMapEncodeTiled(...) { return done(kNotSupported); }

}

// Stands in for the toolkit's header: what our kernels use of it.
#pragma once
struct alignas(64) CUtensorMap {
  unsigned long long opaque[16];
};

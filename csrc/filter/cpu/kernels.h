// The CPU kernels of the filter, one set a level.
#pragma once

#include "filter/model.h"

namespace greedynas::filter {

inline constexpr int kBlockRows = 96;  // paths scored together: their states (144 KB at H = 128) stay in the L2 cache

// Floats that a call needs as `workspace`, aligned to 64 bytes.
constexpr std::int64_t workspace_floats(int hidden) { return std::int64_t{6} * kBlockRows * hidden; }

struct Kernel {
  const char* name;  // of the level

  // Fills packed.recurrent[direction] from W_hh [4H, H].
  void (*pack_recurrent)(Packed& packed, Direction direction, const float* recurrent);

  // States after the first `depth` steps of `direction`. paths: [rows, L], of which only the layers of these steps are
  // read; rows <= kBlockRows. hidden, cell: [rows, H].
  void (*prefix_states)(const Packed& packed, Direction direction, const std::uint8_t* paths, int rows, int depth,
                        float* workspace, float* hidden, float* cell);

  // log Phi of valid paths [rows, L]; rows <= kBlockRows; prefixes may be nullptr.
  void (*score)(const Packed& packed, const Prefixes* prefixes, const std::uint8_t* paths, int rows, float* workspace,
                float* log_weak);
};

extern const Kernel kPortableKernel;
#ifdef GREEDYNAS_X86
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kAvx512Bf16Kernel;  // bf16 only
extern const Kernel kAmxKernel;         // bf16 only
#endif

// The kernel for a level; under avx512_bf16 and amx, float32 takes the one of AVX-512.
inline const Kernel& kernel_for([[maybe_unused]] cpu::Isa isa, [[maybe_unused]] Precision precision) {
#ifdef GREEDYNAS_X86
  if (isa == cpu::Isa::amx && precision == Precision::bf16) return kAmxKernel;
  if (isa == cpu::Isa::avx512_bf16 && precision == Precision::bf16) return kAvx512Bf16Kernel;
  if (isa >= cpu::Isa::avx512) return kAvx512Kernel;
  if (isa == cpu::Isa::avx2) return kAvx2Kernel;
#endif
  return kPortableKernel;
}

}  // namespace greedynas::filter

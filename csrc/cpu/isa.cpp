#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace greedynas::cpu {
namespace {

#ifdef GREEDYNAS_X86
bool tiles_permitted() {
#ifdef __linux__
  // The kernel gives the 8 KiB of tile state only to a process that asks (arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

bool find_amx() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned kTileAndBf16 = (1U << 24) | (1U << 22);
  return has_avx512_bf16() && (d & kTileAndBf16) == kTileAndBf16 && tiles_permitted();
}

bool has_amx() {
  static const bool found = find_amx();  // once: in a virtual machine cpuid is slow
  return found;
}
#endif

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx:
      return "amx";
  }
  return "unknown";
}

std::vector<Isa> compiled() {
#ifdef GREEDYNAS_X86
  return {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx};
#else
  return {Isa::portable};
#endif
}

bool available(Isa isa) {
#ifdef GREEDYNAS_X86
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return has_avx2();
    case Isa::avx512:
      return has_avx512();
    case Isa::avx512_bf16:
      return has_avx512_bf16();
    case Isa::amx:
      return has_amx();
  }
#endif
  return isa == Isa::portable;
}

Isa selected() {
  const char* forced = std::getenv("GREEDYNAS_CPU_ISA");
  Isa best = Isa::portable;
  for (const Isa isa : compiled()) {
    if (forced != nullptr && *forced != '\0' && name_of(isa) == forced) {
      if (available(isa)) return isa;
      throw std::invalid_argument(std::string("GREEDYNAS_CPU_ISA is ") + forced + ", which this machine cannot run");
    }
    if (available(isa)) best = isa;
  }
  if (forced == nullptr || *forced == '\0') return best;
  std::string known;
  for (const Isa isa : compiled()) known += (known.empty() ? "" : ", ") + std::string(name_of(isa));
  throw std::invalid_argument(std::string("GREEDYNAS_CPU_ISA is ") + forced + "; this build has " + known);
}

}  // namespace greedynas::cpu

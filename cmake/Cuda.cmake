# The CUDA part: GREEDYNAS_CUDA=AUTO builds it where a CUDA compiler and its headers are found, ON insists, OFF leaves
# it out. A toolkit is enough: building and importing need no GPU and no driver.
set(GREEDYNAS_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE GREEDYNAS_CUDA PROPERTY STRINGS AUTO ON OFF)
set(GREEDYNAS_HAS_CUDA FALSE)

if(NOT GREEDYNAS_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GREEDYNAS_CUDA must be AUTO, ON or OFF, got ${GREEDYNAS_CUDA}")
endif()

# Only the Python module uses the kernels; the C++ tests run them on the CPU.
if(GREEDYNAS_CUDA STREQUAL "ON" OR (GREEDYNAS_CUDA STREQUAL "AUTO" AND GREEDYNAS_PYTHON))
  include(CheckLanguage)
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND)
    if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
      set(CMAKE_CUDA_COMPILER "${CUDAToolkit_NVCC_EXECUTABLE}")
    endif()
    check_language(CUDA)
  endif()
  if(CUDAToolkit_FOUND AND CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
      # A100 and H100 as they are; the driver compiles for whatever comes later.
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
    endif()
    enable_language(CUDA)
    set(GREEDYNAS_HAS_CUDA TRUE)
  elseif(GREEDYNAS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GREEDYNAS_CUDA=ON needs nvcc and the CUDA headers, and a host compiler that nvcc takes. Install "
                        "the CUDA toolkit and put nvcc on the PATH, or name it: -DCMAKE_CUDA_COMPILER=/path/to/nvcc. "
                        "GREEDYNAS_CUDA=OFF builds without.")
  endif()
endif()

if(GREEDYNAS_HAS_CUDA)
  message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "CUDA: not built (GREEDYNAS_CUDA=${GREEDYNAS_CUDA})")
endif()

# The kernels as a library. The longest to compile come first.
function(greedynas_add_cuda)
  add_library(greedynas_cuda STATIC
    csrc/paths/cuda/sort.cu
    csrc/cuda/select.cu
    csrc/filter/cuda/bf16.cu
    csrc/blocks/cuda/mixconv_backward.cu
    csrc/blocks/cuda/mixconv_forward.cu
    csrc/blocks/cuda/squeeze_excite.cu
    csrc/blocks/cuda/bn_act.cu
    csrc/filter/cuda/float32.cu
    csrc/filter/cuda/head.cu
    csrc/filter/cuda/rejection.cu
    csrc/filter/cuda/prepare.cu
    csrc/filter/cuda/score.cu
    csrc/paths/cuda/paths.cu
    csrc/paths/cuda/keys.cu
    csrc/blocks/cuda/bn_moments.cu
    csrc/blocks/cuda/mixconv.cu
    csrc/cuda/device.cu
  )
  set_target_properties(greedynas_cuda PROPERTIES
    CUDA_STANDARD 20
    CUDA_STANDARD_REQUIRED ON
    CUDA_RUNTIME_LIBRARY Static
    POSITION_INDEPENDENT_CODE ON
  )
  # -fmad=false: results equal the CPU's bit for bit only if nothing is fused that the source does not fuse.
  # --expt-relaxed-constexpr: constexpr functions of csrc/paths run on both sides. -Xptxas -v: registers in the log.
  target_compile_options(greedynas_cuda PRIVATE
    -fmad=false --expt-relaxed-constexpr -Xptxas=-v -Xcompiler=-Wall,-Wextra
  )
  target_compile_definitions(greedynas_cuda PUBLIC GREEDYNAS_HAS_CUDA)
  target_link_libraries(greedynas_cuda PUBLIC greedynas_core)
endfunction()

# Compile options of the files that are for one CPU level alone: lists greedynas_avx2, greedynas_avx512 and
# greedynas_avx512_bf16, empty where there is no x86-64. Only such files may have them: the rest must run everywhere.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(greedynas_x86 ON)
  set(greedynas_avx2 -mavx2 -mfma -mbmi2)
  set(greedynas_avx512 ${greedynas_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12's own AVX-512 headers set these off (GCC bug 105593).
    list(APPEND greedynas_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  set(greedynas_avx512_bf16 ${greedynas_avx512} -mavx512bf16)
endif()

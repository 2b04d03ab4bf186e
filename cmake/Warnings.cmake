# Warnings are errors on our own code; users of other compilers can turn that off with -DGREEDYNAS_WERROR=OFF.
option(GREEDYNAS_WERROR "Treat warnings as errors" ON)

function(greedynas_warnings target)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(${target} PRIVATE -Wall -Wextra)
    if(GREEDYNAS_WERROR)
      target_compile_options(${target} PRIVATE -Werror)
    endif()
  endif()
endfunction()

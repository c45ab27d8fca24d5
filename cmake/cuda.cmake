# The extension _cuda: kernels of csrc/cuda, without torch and without CUTLASS, with the CUDA runtime linked statically, so
# that it imports on a machine without a driver.
#
#   QKERNELS_CUDA=auto  builds it where nvcc (12.0 or newer) is there, and says in one line what it did and why
#   QKERNELS_CUDA=on    fails where it cannot be built
#   QKERNELS_CUDA=off   leaves it out
#   QKERNELS_CUDA=emulated   builds it from the same sources with the host compiler (csrc/cuda/emulator): for tests
#
# Set as an environment variable (pip install) or with -D.
set(QKERNELS_CUDA "$ENV{QKERNELS_CUDA}" CACHE STRING "auto, on, off or emulated")
if(QKERNELS_CUDA STREQUAL "")
  set(QKERNELS_CUDA auto)
endif()
string(TOLOWER "${QKERNELS_CUDA}" QKERNELS_CUDA)
if(NOT QKERNELS_CUDA MATCHES "^(auto|on|off|emulated)$")
  message(FATAL_ERROR "QKERNELS_CUDA is ${QKERNELS_CUDA}; accepted: auto, on, off, emulated.")
endif()

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu)
file(GLOB CUDA_BINDINGS CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/bindings/cuda_*.cpp)

if(QKERNELS_CUDA STREQUAL "emulated")
  set_source_files_properties(${CUDA_SOURCES} PROPERTIES LANGUAGE CXX)
  file(GLOB EMULATOR CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/emulator/*.cpp)
  add_library(qkernels_emulated OBJECT ${CUDA_SOURCES} ${EMULATOR})
  # -O1: a kernel is compiled in seconds and runs fast enough for tests.
  target_compile_options(qkernels_emulated PRIVATE -O1 ${WARNINGS} -Wno-unknown-pragmas
    -Wno-maybe-uninitialized -ffp-contract=off "SHELL:-x c++")
  target_compile_definitions(qkernels_emulated PRIVATE QK_EMULATE)
  pybind11_add_module(_cuda ${CUDA_BINDINGS} $<TARGET_OBJECTS:qkernels_emulated>)
  target_compile_options(_cuda PRIVATE -O1 ${WARNINGS})
  target_compile_definitions(_cuda PRIVATE QK_EMULATE)
  if(QKERNELS_SANITIZE)
    target_compile_options(qkernels_emulated PRIVATE -fsanitize=${QKERNELS_SANITIZE} -fno-omit-frame-pointer -g)
    target_link_options(_cuda PRIVATE -fsanitize=${QKERNELS_SANITIZE})
  endif()
elseif(NOT QKERNELS_CUDA STREQUAL "off")
  include(CheckLanguage)
  check_language(CUDA)
  set(why "")
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit QUIET)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      set(why "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.0")
    elseif(NOT TARGET CUDA::cudart_static)
      set(why "${CMAKE_CUDA_COMPILER} has no libcudart_static.a")
    endif()
  else()
    set(why "no nvcc in PATH or CUDACXX that compiles with this host compiler")
  endif()
  if(why STREQUAL "")
    message(STATUS "qkernels: CUDA kernels are built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for sm_80, sm_89, sm_90a and PTX "
      "(QKERNELS_CUDA=${QKERNELS_CUDA})")
    # What ptxas says of registers and spills is kept beside each object: tests/test_cuda_build.py reads it.
    set(CMAKE_CUDA_COMPILER_LAUNCHER sh ${CMAKE_CURRENT_SOURCE_DIR}/cmake/keep_output.sh)
    # A file's name ends in _sm90a where it needs instructions of that architecture alone.
    set(CUDA_SM90A ${CUDA_SOURCES})
    list(FILTER CUDA_SM90A INCLUDE REGEX "_sm90a\\.cu$")
    list(FILTER CUDA_SOURCES EXCLUDE REGEX "_sm90a\\.cu$")
    pybind11_add_module(_cuda ${CUDA_BINDINGS})
    target_compile_options(_cuda PRIVATE -O2 ${WARNINGS})
    foreach(part cuda cuda_sm90a)
      set(sources ${CUDA_SOURCES})
      set(architectures 80-real 89-real 90a-real 80-virtual)
      if(part STREQUAL "cuda_sm90a")
        set(sources ${CUDA_SM90A})
        set(architectures 90a-real)
      endif()
      if(sources)
        add_library(qkernels_${part} OBJECT ${sources})
        set_target_properties(qkernels_${part} PROPERTIES CUDA_ARCHITECTURES "${architectures}" CUDA_STANDARD 17
          CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
        # -fmad=false: every float operation rounds once, as in the reference; fmaf still fuses.
        target_compile_options(qkernels_${part} PRIVATE -O3 -fmad=false -Xptxas=-v -Xcompiler=-Wall,-Wextra
          $<$<BOOL:${QKERNELS_WERROR}>:-Werror=all-warnings> --expt-relaxed-constexpr)
        target_sources(_cuda PRIVATE $<TARGET_OBJECTS:qkernels_${part}>)
      endif()
    endforeach()
    target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
    set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX)
  elseif(QKERNELS_CUDA STREQUAL "on")
    message(FATAL_ERROR "qkernels: QKERNELS_CUDA=on, but ${why}.")
  else()
    message(STATUS "qkernels: no CUDA kernels, because of this: ${why} (QKERNELS_CUDA=on makes that an error)")
  endif()
else()
  message(STATUS "qkernels: no CUDA kernels (QKERNELS_CUDA=off)")
endif()

if(TARGET _cuda)
  install(TARGETS _cuda DESTINATION qkernels)
else()
  add_custom_target(_cuda)  # so that one build command serves every setting
endif()

# paceline_library, paceline_binary, paceline_test: one CMake target per folder or per noun, with
# explicit dependencies. All includes are written from the repository root ("worker/kv/block_manager.h").
include_guard()

add_library(paceline_flags INTERFACE)
target_include_directories(paceline_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(paceline_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -ffp-contract=off>)
if(PACELINE_SANITIZE)
  target_compile_options(paceline_flags INTERFACE -fsanitize=${PACELINE_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(paceline_flags INTERFACE -fsanitize=${PACELINE_SANITIZE})
endif()

function(paceline_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${name} STATIC ${ARG_SRCS})
    target_link_libraries(${name} PUBLIC paceline_flags ${ARG_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE paceline_flags ${ARG_DEPS})
  endif()
endfunction()

# INSTALL: part of the relocatable tree: bin/ with lib/ beside it; in the build folder it lies in bin/.
function(paceline_binary name)
  cmake_parse_arguments(ARG "INSTALL" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE paceline_flags ${ARG_DEPS})
  if(ARG_INSTALL)
    set_target_properties(${name} PROPERTIES
      RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin
      INSTALL_RPATH "$ORIGIN/../lib")
    install(TARGETS ${name} RUNTIME_DEPENDENCY_SET paceline_runtime RUNTIME DESTINATION bin COMPONENT runtime)
  endif()
endfunction()

# The shared libraries that a bare Ubuntu 24.04 lacks: all but the C and C++ runtimes and CUDA's own.
function(paceline_install_runtime)
  install(RUNTIME_DEPENDENCY_SET paceline_runtime
    PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv|stdc\\+\\+|gcc_s)\\.so" "^lib(cuda|cublas|nccl|nv)"
    LIBRARY DESTINATION lib COMPONENT runtime)
endfunction()

# Tests' own sources: half the time to compile under a sanitizer, a fifth without.
if(PACELINE_SANITIZE)
  set(PACELINE_TEST_OPTIONS -O0)
else()
  set(PACELINE_TEST_OPTIONS -O1)
endif()

# LABELS: "asan" and "tsan" choose the programs of the sanitizer phases (tests/run.sh).
function(paceline_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT PACELINE_BUILD_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE paceline_flags ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_options(${name} PRIVATE ${PACELINE_TEST_OPTIONS})
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
    if(PACELINE_SANITIZE)
      set(ARG_TIMEOUT 300)
    endif()
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  foreach(label IN LISTS ARG_LABELS)
    if(NOT TARGET paceline_${label}_tests)
      add_custom_target(paceline_${label}_tests)
    endif()
    add_dependencies(paceline_${label}_tests ${name})
  endforeach()
endfunction()

# What includes CUDA's headers: over the CUDA kernels with PACELINE_CUDA, and over their emulation, under the
# name with _emulated, with PACELINE_CUDA_EMULATION. CUDA_DEPS have both names.
function(paceline_cuda_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;CUDA_DEPS" ${ARGN})
  if(PACELINE_CUDA)
    paceline_library(${name} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS} ${ARG_CUDA_DEPS})
  endif()
  if(PACELINE_CUDA_EMULATION)
    list(TRANSFORM ARG_CUDA_DEPS APPEND _emulated)
    paceline_library(${name}_emulated SRCS ${ARG_SRCS} DEPS ${ARG_DEPS} ${ARG_CUDA_DEPS})
  endif()
endfunction()

function(paceline_cuda_test name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;CUDA_DEPS" ${ARGN})
  if(PACELINE_CUDA)
    paceline_test(${name} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS} ${ARG_CUDA_DEPS})
    paceline_gpu_program(${name})
  endif()
  if(PACELINE_CUDA_EMULATION)
    list(TRANSFORM ARG_CUDA_DEPS APPEND _emulated)
    paceline_test(${name}_emulated SRCS ${ARG_SRCS} DEPS ${ARG_DEPS} ${ARG_CUDA_DEPS} LABELS asan)
  endif()
endfunction()

# Part of the tree that tests/gpu.sh runs on a machine with a GPU.
function(paceline_gpu_program name)
  if(NOT TARGET ${name})
    return()
  endif()
  if(NOT TARGET paceline_gpu_programs)
    add_custom_target(paceline_gpu_programs)
  endif()
  add_dependencies(paceline_gpu_programs ${name})
  set_target_properties(${name} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
  install(TARGETS ${name} RUNTIME_DEPENDENCY_SET paceline_gpu RUNTIME DESTINATION bin COMPONENT gpu)
endfunction()

# Their shared libraries, CUDA's runtime among them; the driver's own stays behind.
function(paceline_install_gpu_programs)
  install(RUNTIME_DEPENDENCY_SET paceline_gpu
    PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv|stdc\\+\\+|gcc_s)\\.so" "^libcuda\\.so"
    LIBRARY DESTINATION lib COMPONENT gpu)
endfunction()

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

function(paceline_binary name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE paceline_flags ${ARG_DEPS})
endfunction()

# LABELS: "asan" and "tsan" choose the programs of the sanitizer phases (tests/run.sh).
function(paceline_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT PACELINE_BUILD_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE paceline_flags ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

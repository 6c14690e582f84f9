# Precompiled headers: what most sources of a group parse anyway, parsed once. A folder names its group in
# PACELINE_PRECOMPILED ("core" unless set); its tests take the group's headers with GoogleTest's.
#   core        the standard library and absl::Status
#   rpc         the same with gRPC, the generated messages and the log
# Sources still include all they use: Release compiles the production code of core without precompiled
# headers, which would hide what is missing there. On by PACELINE_PRECOMPILE, with GCC alone.
include_guard()

if(NOT PACELINE_PRECOMPILE OR NOT CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  set(CMAKE_DISABLE_PRECOMPILE_HEADERS ON)
endif()
set(PACELINE_PRECOMPILED core)

set(precompiled_core
  <algorithm> <atomic> <chrono> <condition_variable> <cstdint> <cstring> <functional> <map> <memory> <mutex>
  <optional> <random> <set> <span> <sstream> <string> <string_view> <thread> <unordered_map> <utility> <vector>
  <absl/status/status.h> <absl/status/statusor.h> <absl/strings/str_cat.h>)
set(precompiled_tests <fstream> <gmock/gmock.h> <gtest/gtest.h>)
set(precompiled_rpc
  <absl/strings/str_format.h> <google/protobuf/util/message_differencer.h> <grpcpp/grpcpp.h>
  <paceline/draft/v1/draft.grpc.pb.h> <paceline/v1/cluster.grpc.pb.h> <paceline/v1/inference.grpc.pb.h>
  <paceline/v1/session.grpc.pb.h> <paceline/worker/v1/worker.grpc.pb.h> <google/rpc/error_details.pb.h>)

# GCC takes a precompiled header only where the options that matter and the macros it saw are the same.
function(paceline_precompiled group)
  cmake_parse_arguments(ARG "" "" "HEADERS;DEPS;OPTIONS" ${ARGN})
  set(source ${PROJECT_BINARY_DIR}/precompiled/${group}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "")
  add_library(paceline_precompiled_${group} OBJECT EXCLUDE_FROM_ALL ${source})
  target_link_libraries(paceline_precompiled_${group} PRIVATE paceline_flags ${ARG_DEPS})
  target_compile_options(paceline_precompiled_${group} PRIVATE ${ARG_OPTIONS})
  target_precompile_headers(paceline_precompiled_${group} PRIVATE ${ARG_HEADERS})
endfunction()

function(paceline_precompiled_groups)
  set(core_deps absl::status absl::statusor absl::strings)
  if(PACELINE_SANITIZE)
    paceline_precompiled(core HEADERS ${precompiled_core} DEPS ${core_deps})
  endif()
  if(PACELINE_BUILD_TESTS)
    paceline_precompiled(core_tests
      HEADERS ${precompiled_core} ${precompiled_tests}
      DEPS ${core_deps} GTest::gtest GTest::gmock OPTIONS ${PACELINE_TEST_OPTIONS})
  endif()
endfunction()

function(paceline_precompiled_rpc_groups)
  set(rpc_deps paceline_proto absl::status absl::statusor absl::str_format)
  paceline_precompiled(rpc
    HEADERS ${precompiled_core} ${precompiled_rpc} <spdlog/spdlog.h>
    DEPS ${rpc_deps} spdlog::spdlog)
  if(PACELINE_BUILD_TESTS)
    paceline_precompiled(rpc_tests
      HEADERS ${precompiled_core} ${precompiled_rpc} ${precompiled_tests}
      DEPS ${rpc_deps} GTest::gtest GTest::gmock OPTIONS ${PACELINE_TEST_OPTIONS})
  endif()
endfunction()

function(paceline_use_precompiled name group)
  if(TARGET paceline_precompiled_${group})
    target_precompile_headers(${name} REUSE_FROM paceline_precompiled_${group})
  endif()
endfunction()

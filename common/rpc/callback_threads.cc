#include "common/rpc/callback_threads.h"

#include <grpc/support/cpu.h>
#include <grpcpp/version_info.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "common/rpc/channel.h"

namespace paceline {
namespace {

// What gRPC's queue of callbacks starts; known of this version alone.
int ThreadsOfGrpc() {
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR == 51
  return std::clamp(static_cast<int>(gpr_cpu_num_cores()) / 2, 2, 16);
#else
  return 0;
#endif
}

// Never destroyed: the threads stay in it.
struct Park {
  std::mutex mutex;
  std::condition_variable changed, never;
  int parked = 0;
};

}  // namespace

void KeepCallbackThreads(int count) {
  const int surplus = ThreadsOfGrpc() - count;
  if (surplus <= 0) return;
  auto* park = new Park;
  for (int i = 0; i < surplus; ++i) {
    RunOnCallbackThread([park] {
      std::unique_lock lock(park->mutex);
      ++park->parked;
      park->changed.notify_one();
      park->never.wait(lock, [] { return false; });
    });
  }
  std::unique_lock lock(park->mutex);
  park->changed.wait(lock, [&] { return park->parked == surplus; });
}

}  // namespace paceline

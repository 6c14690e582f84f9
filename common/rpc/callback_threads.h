// How many threads run gRPC's callbacks in this process.
#pragma once

namespace paceline {

// gRPC 1.51 runs all callbacks on half as many threads as there are cores, at least two, around one
// queue. Whoever completes something wakes another of them, so that a process that writes many
// small messages pays a switch of threads for each. From here on `count` of those threads are left;
// the others are parked for good. For a process whose callbacks never wait for one another. To be
// called once, before servers and channels are made; with another version of gRPC it does nothing.
void KeepCallbackThreads(int count);

}  // namespace paceline

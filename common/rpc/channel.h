// Settings that every server and channel of Paceline shares.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/channel.h>
#include <grpcpp/server_builder.h>

namespace paceline {

inline constexpr int kMaxMessageBytes = 16 << 20;

// A server for clients that ping every 10 s even while idle, with health service; reflection where
// asked.
void ConfigureServer(grpc::ServerBuilder* builder, bool reflection);

// An insecure channel with its own HTTP/2 connection, which notices a dead peer by keepalive and
// reconnects fast.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address);

// Runs `task` on a thread that runs gRPC's callbacks.
void RunOnCallbackThread(std::function<void()> task);

// "127.0.0.1:0" and port 4711 -> "127.0.0.1:4711".
std::string WithPort(const std::string& address, int port);

}  // namespace paceline

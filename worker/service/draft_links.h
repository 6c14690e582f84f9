// A target's links to all its draft workers. The list is resolved again and again, as a whole: a
// name may stand for several drafters (a headless service), and drafters come and go. One thread
// keeps the links' time, another waits for name servers.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/service/grpc_draft_link.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {

// "host:port" -> every "address:port" it stands for. UNAVAILABLE when the name does not resolve;
// INVALID_ARGUMENT when it is no host:port.
absl::StatusOr<std::vector<std::string>> ResolveAddress(const std::string& address);

struct DraftLinksOptions {
  Duration tick = std::chrono::milliseconds(10);
  Duration resolve_interval = std::chrono::seconds(5);
  GrpcDraftLinkOptions link;
};

class DraftLinks {
 public:
  // `addresses` as given by --draft. The speculator outlives this object.
  DraftLinks(std::vector<std::string> addresses, draft::v1::Hello hello,
             DraftSpeculator* speculator, GrpcDraftLink::RoundTrip round_trip,
             DraftLinksOptions options = {});
  // Closes all links.
  ~DraftLinks();

  struct LinkState {
    std::string name;
    DraftLinkState state = DraftLinkState::kDown;
    std::string last_error;
  };
  std::vector<LinkState> States() const;

 private:
  struct Link {
    DraftLinkId id = 0;
    std::shared_ptr<GrpcDraftLink> link;
  };

  void RunTicks();
  void RunResolver();
  void Adopt(const std::vector<std::string>& names);
  std::shared_ptr<GrpcDraftLink> Add(const std::string& name, DraftLinkId* id);

  const std::vector<std::string> addresses_;
  const draft::v1::Hello hello_;
  DraftSpeculator* const speculator_;
  const GrpcDraftLink::RoundTrip round_trip_;
  const DraftLinksOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopped_ = false;
  std::map<std::string, Link> links_;  // by name
  std::thread ticker_, resolver_;
};

}  // namespace paceline

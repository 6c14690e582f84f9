// The target's end of one stream to one draft worker, as speculation sees it; the service
// implements it over gRPC, tests over queues. What comes back goes to DraftMailbox::Deliver.
#pragma once

#include <cstdint>
#include <string>

#include "common/types/draft_messages.h"

namespace paceline {

enum class DraftLinkState : uint8_t {
  kDown = 0,  // no stream, or refused by name (pairing); the owner reconnects in the background
  kUp,
  kDraining,  // the drafter asks for its sessions to be moved; still works
};

struct DraftLinkStatus {
  DraftLinkState state = DraftLinkState::kDown;
  // Grows with every new stream. The drafter has forgotten every session of an older one.
  uint64_t incarnation = 0;
};

// Thread-safe; called from the engine thread, so nothing may block.
class DraftLink {
 public:
  virtual ~DraftLink() = default;

  // The drafter's identity, stable over reconnects and restarts of either side (an address): the
  // same session prefers the same drafter.
  virtual const std::string& name() const = 0;

  virtual DraftLinkStatus status() const = 0;

  // Queues the frame for the stream of this incarnation and returns at once. False: that stream is
  // gone or its queue is full, and nothing of the frame was or will be sent; the sessions in it are
  // opened anew later. Frames of one incarnation arrive in order or not at all; loss and
  // duplication are survived all the same.
  virtual bool Send(uint64_t incarnation, TargetFrame frame) = 0;
};

}  // namespace paceline

// One sequence's session at a draft worker: what the drafter has been told, what it has answered.
// Owned by the engine thread; knows neither where drafters come from nor when a session pays.
#pragma once

#include <cstdint>
#include <span>

#include "worker/spec/draft_mailbox.h"
#include "worker/spec/drafter_table.h"
#include "worker/spec/proposal_shelf.h"
#include "worker/spec/speculator.h"

namespace paceline {

class RemoteSession {
 public:
  explicit RemoteSession(uint64_t session) : session_(session) {}

  bool open() const { return open_; }
  // The drafter talked nonsense, or said that we did: no remote drafts until the next epoch.
  bool quarantined() const { return quarantined_; }
  DraftLinkId link() const { return link_; }
  uint64_t incarnation() const { return incarnation_; }
  bool opened_before() const { return opened_before_; }
  uint64_t reopen_at() const { return reopen_at_; }  // step before which it stays closed

  // Each opening has an epoch of its own on the wire, so that what answers an earlier one is known
  // by it. The session is closed.
  void Open(const SpecSequence& sequence, uint32_t wire_epoch, Drafter* drafter,
            DraftMailbox* mailbox);
  // The drafter that it is open at.
  void Close(Drafter* drafter);
  // Its stream has ended.
  void Lose() { open_ = false; }

  struct Want {
    int32_t len = 0;
    int32_t branches = 0;
    int32_t enough = 0;  // tokens of a branch, or of the chain, that the next step can use
  };
  // Tells what has been committed since the last call and what is verified behind it. Says nothing
  // where there is nothing new; while no drafts are wanted, only now and then.
  void Tell(std::span<const TokenId> tokens, std::span<const TokenId> in_flight, Want want,
            Drafter* drafter, DraftMailbox* mailbox);

  // What has come since the last call, put on the shelf. Nacks and quarantine close the session.
  // `drafter` as for Close.
  ProposalShelf::Passed Read(std::span<const TokenId> tokens, uint64_t step, Drafter* drafter,
                             DrafterTable* table, DraftMailbox* mailbox);
  // A nack made the session invalid; reported once.
  bool TakeInvalid() { return std::exchange(invalid_, false); }

  ProposalShelf& shelf() { return shelf_; }
  // Drafts for this base were asked for.
  bool Asked(int32_t base_len) const {
    return open_ && told_len_ == base_len && last_want_.len > 0;
  }

 private:
  void Digest(const DraftNack& nack, uint64_t step, Drafter* drafter, DrafterTable* table);

  uint64_t session_;
  DraftSessionId wire_id_;
  bool open_ = false;
  bool quarantined_ = false;
  bool opened_before_ = false;
  bool invalid_ = false;
  DraftLinkId link_ = 0;
  uint64_t incarnation_ = 0;
  int32_t told_len_ = 0;
  uint64_t told_hash_ = 0;
  Want last_want_;
  std::vector<TokenId> last_in_flight_;
  int32_t setbacks_ = 0;  // nacks since anything of use came
  uint64_t reopen_at_ = 0;
  ProposalShelf shelf_;
  DraftMail mail_;
};

}  // namespace paceline

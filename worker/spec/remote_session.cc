#include "worker/spec/remote_session.h"

#include <algorithm>

#include "common/check.h"
#include "common/hash.h"

namespace paceline {
namespace {

// Tokens that may gather untold while no drafts are wanted: the drafter catches up by prefill.
constexpr int32_t kMaxUntold = 16;
constexpr int32_t kMaxSetbacks = 10;
constexpr uint64_t kEvictedPause = 16;  // steps: coming back at once would evict others

}  // namespace

void RemoteSession::Open(const SpecSequence& sequence, uint32_t wire_epoch, Drafter* drafter,
                         DraftMailbox* mailbox) {
  CHECK(!open_);
  wire_id_ = {.session = session_, .epoch = wire_epoch};
  link_ = drafter->id;
  incarnation_ = drafter->status.incarnation;
  open_ = opened_before_ = true;
  told_len_ = static_cast<int32_t>(sequence.tokens.size());
  told_hash_ = HashTokens(sequence.tokens);
  last_want_ = {};
  last_in_flight_.clear();
  shelf_.Clear();
  shelf_.Told(told_len_, {});
  mailbox->Open(wire_id_, link_, incarnation_);
  mailbox->Told(session_, told_len_, told_hash_);
  ++drafter->sessions;
  drafter->owed += told_len_;
  drafter->frame.opens.push_back({.id = wire_id_,
                                  .sampling = *sequence.sampling,
                                  .sample = sequence.sample,
                                  .prompt_len = sequence.prompt_len,
                                  .max_len = sequence.max_len,
                                  .tokens = {sequence.tokens.begin(), sequence.tokens.end()},
                                  .priority = sequence.priority,
                                  .cache_salt = std::string(sequence.cache_salt)});
}

void RemoteSession::Close(Drafter* drafter) {
  if (!open_) return;
  open_ = false;
  if (drafter == nullptr) return;
  --drafter->sessions;
  drafter->frame.closes.push_back({.id = wire_id_});
}

void RemoteSession::Tell(std::span<const TokenId> tokens, std::span<const TokenId> in_flight,
                         Want want, Drafter* drafter, DraftMailbox* mailbox) {
  const int32_t len = static_cast<int32_t>(tokens.size());
  const bool quiet = want.len == 0 && last_want_.len == 0;
  if (quiet && len - told_len_ < kMaxUntold) return;
  const bool said = len == told_len_ && want.len == last_want_.len &&
                    want.branches == last_want_.branches &&
                    std::ranges::equal(in_flight, last_in_flight_);
  if (said || len < told_len_) return;
  const std::span<const TokenId> fresh = tokens.subspan(told_len_);
  told_hash_ = HashTokens(fresh, told_hash_);
  told_len_ = len;
  last_want_ = want;
  last_in_flight_.assign(in_flight.begin(), in_flight.end());
  shelf_.Told(len, in_flight);
  mailbox->Told(session_, len, told_hash_, want.enough);
  if (want.len > 0) ++drafter->asked;
  drafter->frame.commits.push_back({.id = wire_id_,
                                    .base_len = len,
                                    .new_tokens = {fresh.begin(), fresh.end()},
                                    .prefix_hash = told_hash_,
                                    .in_flight = last_in_flight_,
                                    .want_len = want.len,
                                    .want_branches = want.branches});
}

ProposalShelf::Passed RemoteSession::Read(std::span<const TokenId> tokens, uint64_t step,
                                          Drafter* drafter, DrafterTable* table,
                                          DraftMailbox* mailbox) {
  if (opened_before_ && !quarantined_) {
    mailbox->Take(session_, &mail_);
    for (DraftProposal& proposal : mail_.proposals) {
      setbacks_ = 0;
      shelf_.Add(std::move(proposal));
    }
    if (mail_.nack) Digest(*mail_.nack, step, drafter, table);
    if (mail_.quarantined) {
      quarantined_ = true;
      shelf_.Clear();
      Close(drafter);
    }
  }
  return shelf_.Advance(tokens);
}

void RemoteSession::Digest(const DraftNack& nack, uint64_t step, Drafter* drafter,
                           DrafterTable* table) {
  if (!open_ || drafter == nullptr) return;
  setbacks_ = std::min(setbacks_ + 1, kMaxSetbacks);
  const uint64_t pause = setbacks_ <= 1 ? 0 : uint64_t{1} << setbacks_;
  switch (nack.reason) {
    case DraftNackReason::kNeedSync:
      reopen_at_ = step + pause;
      break;
    case DraftNackReason::kEvicted:
      reopen_at_ = step + std::max(pause, kEvictedPause);
      break;
    case DraftNackReason::kOverloaded:
      reopen_at_ = step + pause;
      table->Refused(drafter, step);
      break;
    case DraftNackReason::kInvalid:
      quarantined_ = invalid_ = true;
      shelf_.Clear();
      break;
  }
  Close(drafter);
}

}  // namespace paceline

#include "worker/spec/draft_mailbox.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace paceline {
namespace {

size_t TotalTokens(const DraftProposal& proposal) {
  size_t total = 0;
  for (const DraftBranch& branch : proposal.branches) total += branch.tokens.size();
  return total;
}

int32_t LongestOf(const DraftProposal& proposal) {
  size_t most = 0;
  for (const DraftBranch& branch : proposal.branches) most = std::max(most, branch.tokens.size());
  return static_cast<int32_t>(most);
}

// Drops that say that the peer is broken, rather than late.
bool IsHostile(DraftDrop reason) {
  return reason == DraftDrop::kBadBase || reason == DraftDrop::kPrefixHash ||
         reason == DraftDrop::kTokenRange || reason == DraftDrop::kSize;
}

}  // namespace

DraftMailbox::DraftMailbox(DraftMailboxLimits limits) : limits_(limits) {
  CHECK_GT(limits_.vocab_size, 0);
}

bool DraftMailbox::TokensFit(std::span<const TokenId> tokens) const {
  return std::ranges::all_of(tokens, [&](TokenId t) { return t >= 0 && t < limits_.vocab_size; });
}

DraftMailbox::Slot* DraftMailbox::Find(const DraftSessionId& id, DraftLinkId link,
                                       uint64_t incarnation) {
  const auto it = slots_.find(id.session);
  if (it == slots_.end()) {
    Count(DraftDrop::kUnknownSession);
  } else if (it->second.link != link || it->second.incarnation != incarnation) {
    Count(DraftDrop::kIncarnation);
  } else if (it->second.epoch != id.epoch) {
    Count(DraftDrop::kEpoch);
  } else if (it->second.quarantined) {
    Count(DraftDrop::kQuarantined);
  } else {
    return &it->second;
  }
  return nullptr;
}

std::optional<DraftDrop> DraftMailbox::Check(const Slot& slot,
                                             const DraftProposal& proposal) const {
  const size_t branches = proposal.branches.size();
  const bool chain = proposal.kind == ProposalKind::kChain;
  if (!chain && proposal.kind != ProposalKind::kEnumerated) return DraftDrop::kSize;
  if (branches == 0 || branches > static_cast<size_t>(chain ? 1 : limits_.max_branches)) {
    return DraftDrop::kSize;
  }
  for (const DraftBranch& branch : proposal.branches) {
    if (branch.tokens.empty() || branch.tokens.size() > static_cast<size_t>(limits_.max_tokens)) {
      return DraftDrop::kSize;
    }
    if (!TokensFit(branch.tokens)) return DraftDrop::kTokenRange;
    if (chain) continue;  // its outcome is unused
    if (branch.accepted < 0 || branch.accepted > limits_.max_tokens) return DraftDrop::kSize;
    if (!TokensFit(std::span(&branch.next, 1))) return DraftDrop::kTokenRange;
  }
  if (proposal.base_len < 0 || slot.bases.empty() || proposal.base_len > slot.bases.back().len) {
    return DraftDrop::kBadBase;
  }
  if (proposal.base_len < slot.bases.front().len) return DraftDrop::kStaleBase;
  const auto base = std::ranges::lower_bound(slot.bases, proposal.base_len, {}, &Slot::Base::len);
  if (base->len != proposal.base_len) return DraftDrop::kBadBase;
  if (base->hash != proposal.prefix_hash) return DraftDrop::kPrefixHash;
  return std::nullopt;
}

void DraftMailbox::Deliver(DraftLinkId link, uint64_t incarnation, DraftFrame frame) {
  {
    std::lock_guard lock(mutex_);
    Heard& heard = heard_[link];
    ++heard.frames;
    // All zero: none was sent; the drafter has at least the session that it talks about.
    if (frame.load.sessions > 0 || frame.load.step_micros > 0) {
      heard.load.sessions = std::max(0, frame.load.sessions);
      heard.load.rows_per_step = std::max(0, frame.load.rows_per_step);
      heard.load.step_micros = std::max(0, frame.load.step_micros);
      heard.load.free_blocks = std::max(0, frame.load.free_blocks);
    }
  }
  const size_t limit = static_cast<size_t>(limits_.max_proposals_per_frame);
  if (frame.proposals.size() > limit || frame.nacks.size() > limit) {
    frame.proposals.resize(std::min(frame.proposals.size(), limit));
    frame.nacks.resize(std::min(frame.nacks.size(), limit));
    std::lock_guard lock(mutex_);
    Count(DraftDrop::kFrameSize);
  }
  for (DraftProposal& proposal : frame.proposals) {
    std::lock_guard lock(mutex_);
    ++received_;
    Slot* slot = Find(proposal.id, link, incarnation);
    if (slot == nullptr) continue;
    if (const std::optional<DraftDrop> drop = Check(*slot, proposal)) {
      Count(*drop);
      if (!IsHostile(*drop)) continue;
      ++quarantines_;
      slot->quarantined = true;
      slot->proposals.clear();
      Await(slot, 0);
      continue;
    }
    if (proposal.base_len < slot->bases.back().len) {
      ++late_;
    } else if (LongestOf(proposal) >= slot->enough) {
      Answered(slot);
    }
    Keep(slot, std::move(proposal));
  }
  for (const DraftNack& nack : frame.nacks) {
    std::lock_guard lock(mutex_);
    ++nacks_;
    Slot* slot = Find(nack.id, link, incarnation);
    if (slot == nullptr) continue;
    slot->nack = nack;
    Await(slot, 0);
  }
}

// A proposal replaces an earlier, shorter one of its base.
void DraftMailbox::Keep(Slot* slot, DraftProposal proposal) {
  std::vector<DraftProposal>& waiting = slot->proposals;
  const auto same = std::ranges::find_if(waiting, [&](const DraftProposal& p) {
    return p.base_len == proposal.base_len && p.kind == proposal.kind;
  });
  if (same != waiting.end()) {
    if (TotalTokens(*same) <= TotalTokens(proposal)) *same = std::move(proposal);
    return;
  }
  if (waiting.size() >= static_cast<size_t>(limits_.max_waiting)) {
    const auto oldest = std::ranges::min_element(waiting, {}, &DraftProposal::base_len);
    Count(DraftDrop::kStaleBase);
    if (oldest->base_len > proposal.base_len) return;
    waiting.erase(oldest);
  }
  waiting.push_back(std::move(proposal));
}

void DraftMailbox::Open(const DraftSessionId& id, DraftLinkId link, uint64_t incarnation) {
  std::lock_guard lock(mutex_);
  Slot& slot = slots_[id.session];
  const bool quarantined = slot.quarantined && slot.epoch == id.epoch;
  Await(&slot, 0);
  slot = Slot{};
  slot.epoch = id.epoch;
  slot.link = link;
  slot.incarnation = incarnation;
  slot.quarantined = quarantined;
}

void DraftMailbox::Told(uint64_t session, int32_t base_len, uint64_t prefix_hash, int32_t enough) {
  std::lock_guard lock(mutex_);
  const auto it = slots_.find(session);
  if (it == slots_.end()) return;
  Await(&it->second, it->second.quarantined ? 0 : enough);
  std::deque<Slot::Base>& bases = it->second.bases;
  if (!bases.empty() && bases.back().len >= base_len) return;
  bases.push_back({.len = base_len, .hash = prefix_hash});
  if (bases.size() > static_cast<size_t>(limits_.remembered_bases)) bases.pop_front();
}

void DraftMailbox::Close(uint64_t session) {
  std::lock_guard lock(mutex_);
  const auto it = slots_.find(session);
  if (it == slots_.end()) return;
  Await(&it->second, 0);
  slots_.erase(it);
}

void DraftMailbox::Await(Slot* slot, int32_t enough) {
  Answered(slot);
  asking_ += (enough > 0 ? 1 : 0) - (slot->asks ? 1 : 0);
  slot->asks = enough > 0;
  slot->enough = enough;
  unanswered_ += enough > 0 ? 1 : 0;
}

void DraftMailbox::Answered(Slot* slot) {
  if (slot->enough == 0) return;
  slot->enough = 0;
  if (--unanswered_ == 0) answered_.notify_all();
}

double DraftMailbox::AwaitAnswers(Duration most) {
  std::unique_lock lock(mutex_);
  answered_.wait_for(lock, most, [this] { return unanswered_ == 0; });
  return asking_ == 0 ? 1 : 1 - static_cast<double>(unanswered_) / asking_;
}

bool DraftMailbox::awaits_answers() const {
  std::lock_guard lock(mutex_);
  return unanswered_ > 0;
}

void DraftMailbox::AwaitNothing(uint64_t session) {
  std::lock_guard lock(mutex_);
  if (const auto it = slots_.find(session); it != slots_.end()) Await(&it->second, 0);
}

void DraftMailbox::Take(uint64_t session, DraftMail* mail) {
  mail->proposals.clear();
  mail->nack.reset();
  mail->quarantined = false;
  std::lock_guard lock(mutex_);
  const auto it = slots_.find(session);
  if (it == slots_.end()) return;
  std::swap(mail->proposals, it->second.proposals);
  std::swap(mail->nack, it->second.nack);
  mail->quarantined = it->second.quarantined;
}

DraftLoad DraftMailbox::load(DraftLinkId link) const {
  std::lock_guard lock(mutex_);
  const auto it = heard_.find(link);
  return it == heard_.end() ? DraftLoad{} : it->second.load;
}

uint64_t DraftMailbox::num_frames(DraftLinkId link) const {
  std::lock_guard lock(mutex_);
  const auto it = heard_.find(link);
  return it == heard_.end() ? 0 : it->second.frames;
}

void DraftMailbox::AddCountersTo(SpecCounters* counters) {
  std::lock_guard lock(mutex_);
  counters->proposals_received += std::exchange(received_, 0);
  counters->proposals_late += std::exchange(late_, 0);
  counters->nacks += std::exchange(nacks_, 0);
  counters->quarantines += std::exchange(quarantines_, 0);
  for (size_t i = 0; i < drops_.size(); ++i) counters->drops[i] += std::exchange(drops_[i], 0);
}

size_t DraftMailbox::num_slots() const {
  std::lock_guard lock(mutex_);
  return slots_.size();
}

}  // namespace paceline

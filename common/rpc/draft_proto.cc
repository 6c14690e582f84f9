#include "common/rpc/draft_proto.h"

#include <bit>
#include <cstring>

#include "common/rpc/generation_proto.h"

namespace paceline {
namespace {

static_assert(std::endian::native == std::endian::little, "token arrays are copied as they lie");

void PackTokens(const std::vector<TokenId>& tokens, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(TokenId));
}

// False when the bytes are no whole number of ids.
bool UnpackTokens(const std::string& bytes, std::vector<TokenId>* tokens) {
  if (bytes.size() % sizeof(TokenId) != 0) return false;
  tokens->resize(bytes.size() / sizeof(TokenId));
  if (!bytes.empty()) std::memcpy(tokens->data(), bytes.data(), bytes.size());
  return true;
}

template <typename Proto>
void PackId(const DraftSessionId& id, Proto* proto) {
  proto->set_session(id.session);
  proto->set_epoch(id.epoch);
}

template <typename Proto>
DraftSessionId IdOf(const Proto& proto) {
  return {proto.session(), proto.epoch()};
}

bool UnpackOpen(const draft::v1::Open& proto, DraftOpen* open) {
  open->id = IdOf(proto);
  auto sampling = FromProto(proto.sampling());
  if (!proto.has_sampling() || !sampling.ok()) return false;
  open->sampling = *std::move(sampling);
  open->sample = proto.sample();
  open->prompt_len = proto.prompt_len();
  open->max_len = proto.max_len();
  open->priority = proto.priority();
  open->cache_salt = proto.cache_salt();
  return open->cache_salt.size() <= kMaxWireIdBytes && UnpackTokens(proto.tokens(), &open->tokens);
}

bool UnpackCommit(const draft::v1::Commit& proto, DraftCommit* commit) {
  commit->id = IdOf(proto);
  commit->base_len = proto.base_len();
  commit->prefix_hash = proto.prefix_hash();
  commit->want_len = proto.want_len();
  commit->want_branches = proto.want_branches();
  return UnpackTokens(proto.new_tokens(), &commit->new_tokens) &&
         UnpackTokens(proto.in_flight(), &commit->in_flight);
}

DraftProposal UnpackProposal(const draft::v1::Proposal& proto) {
  DraftProposal proposal;
  proposal.id = IdOf(proto);
  proposal.base_len = proto.base_len();
  proposal.prefix_hash = proto.prefix_hash();
  proposal.kind = proto.kind() == draft::v1::PROPOSAL_KIND_ENUMERATED ? ProposalKind::kEnumerated
                                                                      : ProposalKind::kChain;
  bool good = proto.kind() == draft::v1::PROPOSAL_KIND_ENUMERATED ||
              proto.kind() == draft::v1::PROPOSAL_KIND_CHAIN;
  proposal.branches.resize(good ? proto.branches_size() : 0);
  for (size_t i = 0; i < proposal.branches.size(); ++i) {
    DraftBranch& branch = proposal.branches[i];
    branch.accepted = proto.branches(i).accepted();
    branch.next = proto.branches(i).next();
    good &= UnpackTokens(proto.branches(i).tokens(), &branch.tokens);
  }
  if (!good) proposal.branches.clear();
  return proposal;
}

draft::v1::NackReason PackReason(DraftNackReason reason) {
  switch (reason) {
    case DraftNackReason::kNeedSync:
      return draft::v1::NACK_REASON_NEED_SYNC;
    case DraftNackReason::kEvicted:
      return draft::v1::NACK_REASON_EVICTED;
    case DraftNackReason::kOverloaded:
      return draft::v1::NACK_REASON_OVERLOADED;
    case DraftNackReason::kInvalid:
      return draft::v1::NACK_REASON_INVALID;
  }
  return draft::v1::NACK_REASON_UNSPECIFIED;
}

// A reason unknown here means that the session is of no more use.
DraftNackReason UnpackReason(draft::v1::NackReason reason) {
  switch (reason) {
    case draft::v1::NACK_REASON_NEED_SYNC:
      return DraftNackReason::kNeedSync;
    case draft::v1::NACK_REASON_EVICTED:
      return DraftNackReason::kEvicted;
    case draft::v1::NACK_REASON_OVERLOADED:
      return DraftNackReason::kOverloaded;
    default:
      return DraftNackReason::kInvalid;
  }
}

}  // namespace

void ToProto(const TargetFrame& frame, draft::v1::OpenStreamRequest* proto) {
  for (const DraftOpen& open : frame.opens) {
    auto* p = proto->add_opens();
    PackId(open.id, p);
    ToProto(open.sampling, p->mutable_sampling());
    p->set_sample(open.sample);
    p->set_prompt_len(open.prompt_len);
    p->set_max_len(open.max_len);
    PackTokens(open.tokens, p->mutable_tokens());
    p->set_priority(open.priority);
    p->set_cache_salt(open.cache_salt);
  }
  for (const DraftCommit& commit : frame.commits) {
    auto* p = proto->add_commits();
    PackId(commit.id, p);
    p->set_base_len(commit.base_len);
    PackTokens(commit.new_tokens, p->mutable_new_tokens());
    p->set_prefix_hash(commit.prefix_hash);
    PackTokens(commit.in_flight, p->mutable_in_flight());
    p->set_want_len(commit.want_len);
    p->set_want_branches(commit.want_branches);
  }
  for (const DraftClose& close : frame.closes) PackId(close.id, proto->add_closes());
}

TargetFrame FromProto(const draft::v1::OpenStreamRequest& proto, std::vector<DraftNack>* refused) {
  TargetFrame frame;
  const auto refuse = [refused](const DraftSessionId& id) {
    refused->push_back({.id = id, .reason = DraftNackReason::kInvalid});
  };
  for (const auto& p : proto.opens()) {
    DraftOpen open;
    UnpackOpen(p, &open) ? frame.opens.push_back(std::move(open)) : refuse(open.id);
  }
  for (const auto& p : proto.commits()) {
    DraftCommit commit;
    UnpackCommit(p, &commit) ? frame.commits.push_back(std::move(commit)) : refuse(commit.id);
  }
  for (const auto& p : proto.closes()) frame.closes.push_back({IdOf(p)});
  return frame;
}

void ToProto(const DraftFrame& frame, draft::v1::OpenStreamResponse* proto) {
  for (const DraftProposal& proposal : frame.proposals) {
    auto* p = proto->add_proposals();
    PackId(proposal.id, p);
    p->set_base_len(proposal.base_len);
    p->set_prefix_hash(proposal.prefix_hash);
    p->set_kind(proposal.kind == ProposalKind::kEnumerated ? draft::v1::PROPOSAL_KIND_ENUMERATED
                                                           : draft::v1::PROPOSAL_KIND_CHAIN);
    for (const DraftBranch& branch : proposal.branches) {
      auto* b = p->add_branches();
      b->set_accepted(branch.accepted);
      b->set_next(branch.next);
      PackTokens(branch.tokens, b->mutable_tokens());
    }
  }
  for (const DraftNack& nack : frame.nacks) {
    auto* p = proto->add_nacks();
    PackId(nack.id, p);
    p->set_reason(PackReason(nack.reason));
    p->set_have_len(nack.have_len);
  }
  auto* load = proto->mutable_load();
  load->set_sessions(frame.load.sessions);
  load->set_rows_per_step(frame.load.rows_per_step);
  load->set_step_micros(frame.load.step_micros);
  load->set_free_blocks(frame.load.free_blocks);
}

DraftFrame FromProto(const draft::v1::OpenStreamResponse& proto) {
  DraftFrame frame;
  for (const auto& p : proto.proposals()) frame.proposals.push_back(UnpackProposal(p));
  for (const auto& p : proto.nacks()) {
    frame.nacks.push_back({IdOf(p), UnpackReason(p.reason()), p.have_len()});
  }
  const auto& load = proto.load();
  frame.load = {load.sessions(), load.rows_per_step(), load.step_micros(), load.free_blocks()};
  return frame;
}

}  // namespace paceline

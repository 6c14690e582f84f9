#include "common/rpc/draft_proto.h"

#include <cstdlib>
#include <random>

#include <gtest/gtest.h>

namespace paceline {
namespace {

class DraftProtoTest : public ::testing::Test {
 protected:
  DraftProtoTest() {
    const char* replay = std::getenv("PACELINE_TEST_SEED");
    const uint64_t seed = replay ? std::strtoull(replay, nullptr, 10) : std::random_device{}();
    random_.seed(seed);
    trace_ = std::make_unique<::testing::ScopedTrace>(__FILE__, __LINE__,
                                                      "PACELINE_TEST_SEED=" + std::to_string(seed));
  }

  int32_t Int(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  std::vector<TokenId> Tokens() {
    std::vector<TokenId> tokens(Int(0, 20));
    for (TokenId& t : tokens) t = Int(-3, 1 << 30);
    return tokens;
  }
  DraftSessionId Id() { return {random_(), static_cast<uint32_t>(random_())}; }

  std::mt19937_64 random_;
  std::unique_ptr<::testing::ScopedTrace> trace_;
};

TEST_F(DraftProtoTest, TargetFramesGoThereAndBack) {
  for (int i = 0; i < 100; ++i) {
    TargetFrame frame;
    for (int k = Int(0, 3); k > 0; --k) {
      DraftOpen open{
          .id = Id(), .sample = Int(0, 9), .prompt_len = Int(0, 9), .max_len = Int(0, 9)};
      open.sampling.seed = random_();
      open.sampling.temperature = 0.5f;
      open.tokens = Tokens();
      open.priority = Int(-9, 9);
      open.cache_salt = "salt";
      frame.opens.push_back(open);
    }
    for (int k = Int(0, 3); k > 0; --k) {
      frame.commits.push_back({.id = Id(),
                               .base_len = Int(0, 99),
                               .new_tokens = Tokens(),
                               .prefix_hash = random_(),
                               .in_flight = Tokens(),
                               .want_len = Int(0, 9),
                               .want_branches = Int(0, 9)});
    }
    for (int k = Int(0, 3); k > 0; --k) frame.closes.push_back({Id()});

    draft::v1::OpenStreamRequest proto;
    ToProto(frame, &proto);
    draft::v1::OpenStreamRequest parsed;
    ASSERT_TRUE(parsed.ParseFromString(proto.SerializeAsString()));
    std::vector<DraftNack> refused;
    const TargetFrame back = FromProto(parsed, &refused);
    EXPECT_TRUE(refused.empty());
    ASSERT_EQ(back.opens.size(), frame.opens.size());
    for (size_t k = 0; k < back.opens.size(); ++k) {
      EXPECT_EQ(back.opens[k].id, frame.opens[k].id);
      EXPECT_EQ(back.opens[k].sampling, frame.opens[k].sampling);
      EXPECT_EQ(back.opens[k].sample, frame.opens[k].sample);
      EXPECT_EQ(back.opens[k].prompt_len, frame.opens[k].prompt_len);
      EXPECT_EQ(back.opens[k].max_len, frame.opens[k].max_len);
      EXPECT_EQ(back.opens[k].tokens, frame.opens[k].tokens);
      EXPECT_EQ(back.opens[k].priority, frame.opens[k].priority);
      EXPECT_EQ(back.opens[k].cache_salt, frame.opens[k].cache_salt);
    }
    ASSERT_EQ(back.commits.size(), frame.commits.size());
    for (size_t k = 0; k < back.commits.size(); ++k) {
      EXPECT_EQ(back.commits[k].id, frame.commits[k].id);
      EXPECT_EQ(back.commits[k].base_len, frame.commits[k].base_len);
      EXPECT_EQ(back.commits[k].new_tokens, frame.commits[k].new_tokens);
      EXPECT_EQ(back.commits[k].prefix_hash, frame.commits[k].prefix_hash);
      EXPECT_EQ(back.commits[k].in_flight, frame.commits[k].in_flight);
      EXPECT_EQ(back.commits[k].want_len, frame.commits[k].want_len);
      EXPECT_EQ(back.commits[k].want_branches, frame.commits[k].want_branches);
    }
    ASSERT_EQ(back.closes.size(), frame.closes.size());
    for (size_t k = 0; k < back.closes.size(); ++k) {
      EXPECT_EQ(back.closes[k].id, frame.closes[k].id);
    }
  }
}

TEST_F(DraftProtoTest, DraftFramesGoThereAndBack) {
  for (int i = 0; i < 100; ++i) {
    DraftFrame frame;
    for (int k = Int(0, 3); k > 0; --k) {
      DraftProposal proposal{.id = Id(), .base_len = Int(0, 99), .prefix_hash = random_()};
      proposal.kind = Int(0, 1) ? ProposalKind::kChain : ProposalKind::kEnumerated;
      for (int b = Int(0, 4); b > 0; --b) {
        proposal.branches.push_back({Int(0, 9), Int(0, 1 << 30), Tokens()});
      }
      frame.proposals.push_back(proposal);
    }
    for (int k = Int(0, 3); k > 0; --k) {
      frame.nacks.push_back({Id(), static_cast<DraftNackReason>(Int(0, 3)), Int(0, 99)});
    }
    frame.load = {Int(0, 9), Int(0, 9), Int(0, 9), Int(0, 9)};

    draft::v1::OpenStreamResponse proto;
    ToProto(frame, &proto);
    draft::v1::OpenStreamResponse parsed;
    ASSERT_TRUE(parsed.ParseFromString(proto.SerializeAsString()));
    const DraftFrame back = FromProto(parsed);
    ASSERT_EQ(back.proposals.size(), frame.proposals.size());
    for (size_t k = 0; k < back.proposals.size(); ++k) {
      const DraftProposal &got = back.proposals[k], &sent = frame.proposals[k];
      EXPECT_EQ(got.id, sent.id);
      EXPECT_EQ(got.base_len, sent.base_len);
      EXPECT_EQ(got.prefix_hash, sent.prefix_hash);
      EXPECT_EQ(got.kind, sent.kind);
      ASSERT_EQ(got.branches.size(), sent.branches.size());
      for (size_t b = 0; b < got.branches.size(); ++b) {
        EXPECT_EQ(got.branches[b].accepted, sent.branches[b].accepted);
        EXPECT_EQ(got.branches[b].next, sent.branches[b].next);
        EXPECT_EQ(got.branches[b].tokens, sent.branches[b].tokens);
      }
    }
    ASSERT_EQ(back.nacks.size(), frame.nacks.size());
    for (size_t k = 0; k < back.nacks.size(); ++k) {
      EXPECT_EQ(back.nacks[k].id, frame.nacks[k].id);
      EXPECT_EQ(back.nacks[k].reason, frame.nacks[k].reason);
      EXPECT_EQ(back.nacks[k].have_len, frame.nacks[k].have_len);
    }
    EXPECT_EQ(back.load.sessions, frame.load.sessions);
    EXPECT_EQ(back.load.rows_per_step, frame.load.rows_per_step);
    EXPECT_EQ(back.load.step_micros, frame.load.step_micros);
    EXPECT_EQ(back.load.free_blocks, frame.load.free_blocks);
  }
}

// --- What a broken or hostile peer may send: it costs the session it names ---

TEST_F(DraftProtoTest, MalformedPartsAreRefusedAloneByName) {
  draft::v1::OpenStreamRequest proto;
  TargetFrame good;
  good.opens.push_back({.id = {1, 1}});
  good.commits.push_back({.id = {1, 1}});
  ToProto(good, &proto);
  auto* no_sampling = proto.add_opens();
  no_sampling->set_session(2);
  auto* odd = proto.add_opens();
  *odd = proto.opens(0);
  odd->set_session(3);
  odd->set_tokens("12345");
  auto* salty = proto.add_opens();
  *salty = proto.opens(0);
  salty->set_session(4);
  salty->set_cache_salt(std::string(1000, 'x'));
  auto* unpaired = proto.add_opens();
  *unpaired = proto.opens(0);
  unpaired->set_session(5);
  unpaired->mutable_sampling()->add_bias_ids(1);
  auto* odd_commit = proto.add_commits();
  odd_commit->set_session(6);
  odd_commit->set_new_tokens("123");
  auto* odd_flight = proto.add_commits();
  odd_flight->set_session(7);
  odd_flight->set_in_flight("1");

  std::vector<DraftNack> refused;
  const TargetFrame frame = FromProto(proto, &refused);
  EXPECT_EQ(frame.opens.size(), 1u);
  EXPECT_EQ(frame.commits.size(), 1u);
  ASSERT_EQ(refused.size(), 6u);
  for (size_t i = 0; i < refused.size(); ++i) {
    EXPECT_EQ(refused[i].id.session, i + 2);
    EXPECT_EQ(refused[i].reason, DraftNackReason::kInvalid);
  }
}

TEST_F(DraftProtoTest, MalformedProposalsComeOutEmpty) {
  draft::v1::OpenStreamResponse proto;
  auto* odd = proto.add_proposals();
  odd->set_session(1);
  odd->set_kind(draft::v1::PROPOSAL_KIND_CHAIN);
  odd->add_branches()->set_tokens("abcd");
  odd->add_branches()->set_tokens("abcde");
  auto* unknown = proto.add_proposals();
  unknown->set_session(2);
  unknown->set_kind(static_cast<draft::v1::ProposalKind>(9));
  unknown->add_branches()->set_tokens("abcd");
  proto.add_nacks()->set_reason(static_cast<draft::v1::NackReason>(9));

  const DraftFrame frame = FromProto(proto);
  ASSERT_EQ(frame.proposals.size(), 2u);
  EXPECT_EQ(frame.proposals[0].id.session, 1u);
  EXPECT_TRUE(frame.proposals[0].branches.empty());
  EXPECT_TRUE(frame.proposals[1].branches.empty());
  EXPECT_EQ(frame.nacks[0].reason, DraftNackReason::kInvalid);
}

}  // namespace
}  // namespace paceline

#include "router/service/generation_parser.h"

#include <cmath>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/service/router_test_parts.h"
#include "router/service/tokenizer_watch.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using v1::GenerationSpec;

class GenerationParserTest : public ::testing::Test {
 protected:
  GenerationParserTest() {
    catalog_.Add("m", {testing::ByteTokenizer(), "tok"});
    served_ = FindServedModels({testing::Target("a:1", "m")});
  }

  std::optional<ServingError> Parse(const GenerationSpec& spec, ParsedGeneration* parsed) {
    if (auto error = ParseGeneration(spec, served_, catalog_, kNoDeadline, parsed)) return error;
    return FillPrompt(spec, parsed);
  }
  std::optional<ServingError> Parse(const GenerationSpec& spec) {
    ParsedGeneration parsed;
    return Parse(spec, &parsed);
  }
  static GenerationSpec Text(const std::string& text) {
    GenerationSpec spec;
    spec.set_text(text);
    return spec;
  }

  ModelCatalog catalog_;
  ServedModels served_;
};

TEST_F(GenerationParserTest, FillsInDefaults) {
  ParsedGeneration parsed;
  ASSERT_FALSE(Parse(Text("the a"), &parsed));
  const GenerationRequest& g = parsed.request.generation;
  EXPECT_EQ(parsed.request.model, "m");
  EXPECT_THAT(g.prompt, ElementsAre(257, 258));
  SamplingParams defaults;
  defaults.seed = g.sampling.seed;
  EXPECT_EQ(g.sampling, defaults);
  EXPECT_EQ(g.num_samples, 1);
  EXPECT_EQ(g.decoding, DecodingMode::kAuto);
  EXPECT_EQ(g.request_id.size(), 32u);
  EXPECT_EQ(g.deadline, kNoDeadline);
  ParsedGeneration other;
  ASSERT_FALSE(Parse(Text("the a"), &other));
  EXPECT_NE(other.request.generation.sampling.seed, g.sampling.seed);
  EXPECT_NE(other.request.generation.request_id, g.request_id);
}

TEST_F(GenerationParserTest, TakesWhatIsGiven) {
  GenerationSpec spec;
  spec.set_request_id("mine");
  spec.mutable_token_ids()->add_ids(5);
  spec.set_session_id("s");
  spec.set_cache_salt("salt");
  spec.set_priority(-3);
  auto* sampling = spec.mutable_sampling();
  sampling->set_max_tokens(7);
  sampling->set_min_tokens(2);
  sampling->set_temperature(0);
  sampling->set_top_k(3);
  sampling->set_top_p(0.5);
  sampling->set_min_p(0.25);
  sampling->set_repetition_penalty(1.5);
  sampling->set_presence_penalty(-2);
  sampling->set_frequency_penalty(2);
  (*sampling->mutable_logit_bias())[9] = -100;
  (*sampling->mutable_logit_bias())[3] = 1;
  sampling->add_stop_strings("END");
  sampling->add_stop_token_ids(4);
  sampling->set_ignore_eos(true);
  sampling->set_seed(UINT64_MAX);
  sampling->set_sample_count(16);
  sampling->set_logprobs(true);
  sampling->set_top_logprobs(20);
  spec.mutable_decoding()->mutable_ngram();
  ParsedGeneration parsed;
  ASSERT_FALSE(Parse(spec, &parsed));
  const GenerationRequest& g = parsed.request.generation;
  const SamplingParams want{.temperature = 0,
                            .top_k = 3,
                            .top_p = 0.5,
                            .min_p = 0.25,
                            .repetition_penalty = 1.5,
                            .presence_penalty = -2,
                            .frequency_penalty = 2,
                            .logit_bias = {{3, 1.f}, {9, -100.f}},
                            .seed = UINT64_MAX,
                            .max_tokens = 7,
                            .min_tokens = 2,
                            .stop_token_ids = {4},
                            .ignore_eos = true,
                            .top_logprobs = 20};
  EXPECT_EQ(g.sampling, want);
  EXPECT_EQ(g.request_id, "mine");
  EXPECT_EQ(g.session_id, "s");
  EXPECT_EQ(g.cache_salt, "salt");
  EXPECT_EQ(g.priority, -3);
  EXPECT_EQ(g.num_samples, 16);
  EXPECT_EQ(g.decoding, DecodingMode::kNgram);
  EXPECT_THAT(parsed.StopStringList(), ElementsAre("END"));
}

TEST_F(GenerationParserTest, TakesTheWaysOfDrafting) {
  GenerationSpec spec = Text("the a");
  auto* draft = spec.mutable_decoding()->mutable_draft();
  ParsedGeneration parsed;
  ASSERT_FALSE(Parse(spec, &parsed));
  EXPECT_EQ(parsed.request.generation.decoding, DecodingMode::kDraft);
  EXPECT_EQ(parsed.request.generation.draft_strategy, DraftStrategy::kDefault);
  EXPECT_EQ(parsed.request.generation.draft_len, 0);
  draft->set_draft_length(16);
  for (const auto& [given, taken] : {std::pair(v1::DRAFT_STRATEGY_CHAIN, DraftStrategy::kChain),
                                     {v1::DRAFT_STRATEGY_ENUMERATE, DraftStrategy::kEnumerate},
                                     {v1::DRAFT_STRATEGY_SYNC, DraftStrategy::kSync}}) {
    draft->set_strategy(given);
    ASSERT_FALSE(Parse(spec, &parsed));
    EXPECT_EQ(parsed.request.generation.draft_strategy, taken);
    EXPECT_EQ(parsed.request.generation.draft_len, 16);
  }
}

struct Rejection {
  const char* field;
  std::function<void(GenerationSpec*)> spoil;
};

TEST_F(GenerationParserTest, NamesTheFieldOfEveryRejection) {
  const float nan = std::nanf("");
  const std::vector<Rejection> rejections = {
      {"generation.request_id", [](auto* s) { s->set_request_id(std::string(129, 'x')); }},
      {"generation.request_id",
       [](auto* s) {
         std::string wide;
         for (int i = 0; i < 100; ++i) wide += "語";
         s->set_request_id(wide);
       }},
      {"generation.model", [](auto* s) { s->set_model(std::string(257, 'x')); }},
      {"generation.prompt", [](auto* s) { s->clear_prompt(); }},
      {"generation.text", [](auto* s) { s->set_text(""); }},
      {"generation.token_ids", [](auto* s) { s->mutable_token_ids(); }},
      {"generation.token_ids", [](auto* s) { s->mutable_token_ids()->add_ids(-1); }},
      {"generation.token_ids", [](auto* s) { s->mutable_token_ids()->add_ids(testing::kVocab); }},
      {"generation.chat", [](auto* s) { s->mutable_chat(); }},
      {"generation.session_id", [](auto* s) { s->set_session_id(std::string(257, 'x')); }},
      {"generation.cache_salt", [](auto* s) { s->set_cache_salt(std::string(129, 'x')); }},
      {"generation.structured_output", [](auto* s) { s->mutable_structured_output(); }},
      {"generation.structured_output",
       [](auto* s) { s->mutable_structured_output()->set_regex("a*"); }},
      {"generation.priority", [](auto* s) { s->set_priority(101); }},
      {"generation.priority", [](auto* s) { s->set_priority(INT32_MIN); }},
      {"generation.prompt_logprobs", [](auto* s) { s->set_prompt_logprobs(true); }},
      {"generation.decoding.draft.draft_length",
       [](auto* s) { s->mutable_decoding()->mutable_draft()->set_draft_length(17); }},
      {"generation.decoding.draft.draft_length",
       [](auto* s) { s->mutable_decoding()->mutable_draft()->set_draft_length(0); }},
      {"generation.decoding.draft.strategy",
       [](auto* s) {
         s->mutable_decoding()->mutable_draft()->set_strategy(static_cast<v1::DraftStrategy>(9));
       }},
      {"generation.decoding.ngram.max_ngram",
       [](auto* s) { s->mutable_decoding()->mutable_ngram()->set_max_ngram(4); }},
      {"generation.decoding.lookahead",
       [](auto* s) { s->mutable_decoding()->mutable_lookahead(); }},
      {"generation.decoding.self_draft",
       [](auto* s) { s->mutable_decoding()->mutable_self_draft(); }},
      {"generation.decoding.tree", [](auto* s) { s->mutable_decoding()->mutable_tree(); }},
      {"generation.decoding.beam", [](auto* s) { s->mutable_decoding()->mutable_beam(); }},
      {"generation.decoding.calm", [](auto* s) { s->mutable_decoding()->mutable_calm(); }},
      {"generation.decoding.patience", [](auto* s) { s->mutable_decoding()->mutable_patience(); }},
      {"generation.sampling.max_tokens", [](auto* s) { s->mutable_sampling()->set_max_tokens(0); }},
      {"generation.sampling.min_tokens",
       [](auto* s) { s->mutable_sampling()->set_min_tokens(17); }},
      {"generation.sampling.min_tokens",
       [](auto* s) { s->mutable_sampling()->set_min_tokens(-1); }},
      {"generation.sampling.temperature",
       [](auto* s) { s->mutable_sampling()->set_temperature(-0.1f); }},
      {"generation.sampling.temperature",
       [](auto* s) { s->mutable_sampling()->set_temperature(100.5f); }},
      {"generation.sampling.temperature",
       [=](auto* s) { s->mutable_sampling()->set_temperature(nan); }},
      {"generation.sampling.top_p", [](auto* s) { s->mutable_sampling()->set_top_p(0); }},
      {"generation.sampling.top_p", [](auto* s) { s->mutable_sampling()->set_top_p(1.5f); }},
      {"generation.sampling.top_p", [=](auto* s) { s->mutable_sampling()->set_top_p(nan); }},
      {"generation.sampling.top_k", [](auto* s) { s->mutable_sampling()->set_top_k(-1); }},
      {"generation.sampling.min_p", [](auto* s) { s->mutable_sampling()->set_min_p(1); }},
      {"generation.sampling.min_p", [=](auto* s) { s->mutable_sampling()->set_min_p(nan); }},
      {"generation.sampling.repetition_penalty",
       [](auto* s) { s->mutable_sampling()->set_repetition_penalty(0); }},
      {"generation.sampling.repetition_penalty",
       [](auto* s) { s->mutable_sampling()->set_repetition_penalty(INFINITY); }},
      {"generation.sampling.presence_penalty",
       [](auto* s) { s->mutable_sampling()->set_presence_penalty(2.5f); }},
      {"generation.sampling.frequency_penalty",
       [=](auto* s) { s->mutable_sampling()->set_frequency_penalty(nan); }},
      {"generation.sampling.logit_bias",
       [](auto* s) { (*s->mutable_sampling()->mutable_logit_bias())[1] = 101; }},
      {"generation.sampling.logit_bias",
       [=](auto* s) { (*s->mutable_sampling()->mutable_logit_bias())[1] = nan; }},
      {"generation.sampling.logit_bias",
       [](auto* s) { (*s->mutable_sampling()->mutable_logit_bias())[testing::kVocab] = 1; }},
      {"generation.sampling.logit_bias",
       [](auto* s) {
         for (int i = 0; i < 1025; ++i) (*s->mutable_sampling()->mutable_logit_bias())[i] = 1;
       }},
      {"generation.sampling.stop_strings",
       [](auto* s) { s->mutable_sampling()->add_stop_strings(""); }},
      {"generation.sampling.stop_strings",
       [](auto* s) { s->mutable_sampling()->add_stop_strings(std::string(257, 'x')); }},
      {"generation.sampling.stop_strings",
       [](auto* s) {
         for (int i = 0; i < 17; ++i) s->mutable_sampling()->add_stop_strings("x");
       }},
      {"generation.sampling.stop_token_ids",
       [](auto* s) {
         for (int i = 0; i < 65; ++i) s->mutable_sampling()->add_stop_token_ids(1);
       }},
      {"generation.sampling.stop_token_ids",
       [](auto* s) { s->mutable_sampling()->add_stop_token_ids(testing::kVocab); }},
      {"generation.sampling.sample_count",
       [](auto* s) { s->mutable_sampling()->set_sample_count(0); }},
      {"generation.sampling.sample_count",
       [](auto* s) { s->mutable_sampling()->set_sample_count(17); }},
      {"generation.sampling.top_logprobs",
       [](auto* s) {
         s->mutable_sampling()->set_logprobs(true);
         s->mutable_sampling()->set_top_logprobs(21);
       }},
      {"generation.sampling.top_logprobs",
       [](auto* s) { s->mutable_sampling()->set_top_logprobs(-1); }},
      {"generation.sampling.top_logprobs",
       [](auto* s) { s->mutable_sampling()->set_top_logprobs(1); }},
  };
  for (const Rejection& rejection : rejections) {
    GenerationSpec spec = Text("the");
    rejection.spoil(&spec);
    const auto error = Parse(spec);
    ASSERT_TRUE(error) << rejection.field << "\n" << spec.DebugString();
    EXPECT_EQ(error->code, absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(error->reason, "INVALID_FIELD");
    ASSERT_EQ(error->fields.size(), 1u);
    EXPECT_EQ(error->fields[0].field, rejection.field) << error->message;
    EXPECT_EQ(error->metadata.at("field"), rejection.field);
  }
}

TEST_F(GenerationParserTest, PromptAndMaxTokensFitTheContext) {
  GenerationSpec spec = Text(std::string(4000, 'x'));
  spec.mutable_sampling()->set_max_tokens(96);
  EXPECT_FALSE(Parse(spec));
  spec.mutable_sampling()->set_max_tokens(97);
  const auto error = Parse(spec);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->reason, "CONTEXT_LENGTH_EXCEEDED");
  EXPECT_EQ(error->metadata.at("limit"), "4096");
  EXPECT_EQ(error->metadata.at("got"), "4097");
  spec.mutable_sampling()->set_max_tokens(INT32_MAX);
  EXPECT_EQ(Parse(spec)->reason, "CONTEXT_LENGTH_EXCEEDED");
}

TEST_F(GenerationParserTest, TheModelIsTheOnlyOneOrNamed) {
  catalog_ = {};
  served_ = FindServedModels({});
  EXPECT_EQ(Parse(Text("x"))->reason, "NO_WORKER");
  served_ = FindServedModels({testing::Target("a:1", "m"), testing::Target("b:1", "n")});
  EXPECT_EQ(Parse(Text("x"))->fields[0].field, "generation.model");
  GenerationSpec spec = Text("x");
  spec.set_model("other");
  EXPECT_EQ(Parse(spec)->reason, "MODEL_NOT_FOUND");
  ClusterDirectory::Member unknown;
  unknown.role = "target";
  served_ = FindServedModels({testing::Target("a:1", "m"), unknown});
  spec.clear_text();
  spec.mutable_token_ids()->add_ids(1);
  EXPECT_FALSE(Parse(spec)) << "a worker that has not told its model may have this one";
  catalog_.Add("m", {testing::ByteTokenizer(), "tok"});
  served_ = FindServedModels({});
  EXPECT_FALSE(Parse(Text("x"))) << "the only model that this router was given";
}

TEST_F(GenerationParserTest, TextNeedsTheWorkersTokenizer) {
  served_ = FindServedModels({testing::Target("a:1", "m", "other")});
  auto error = Parse(Text("x"));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->fields[0].field, "generation.text");
  EXPECT_THAT(error->message, HasSubstr("another tokenizer"));
  served_ = FindServedModels({testing::Target("a:1", "m", "")});
  EXPECT_FALSE(Parse(Text("x"))) << "a worker without a tokenizer needs ids only";
  served_ = FindServedModels({testing::Target("a:1", "n")});
  error = Parse(Text("x"));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->fields[0].field, "generation.text");
  EXPECT_THAT(error->message, HasSubstr("no tokenizer"));
  GenerationSpec spec;
  spec.mutable_token_ids()->add_ids(1);
  EXPECT_FALSE(Parse(spec));
  spec.mutable_sampling()->add_stop_strings("x");
  EXPECT_EQ(Parse(spec)->fields[0].field, "generation.sampling.stop_strings");
}

TEST_F(GenerationParserTest, IdsGoWithoutTextToWorkersWithAnotherTokenizer) {
  GenerationSpec spec;
  spec.mutable_token_ids()->add_ids(1);
  ParsedGeneration parsed;
  ASSERT_FALSE(Parse(spec, &parsed));
  EXPECT_NE(parsed.text, nullptr);
  EXPECT_EQ(parsed.request.tokenizer, "tok");
  const auto odd = testing::Target("a:1", "m", "other");
  served_ = FindServedModels({odd});
  ParsedGeneration without;
  ASSERT_FALSE(Parse(spec, &without));
  EXPECT_EQ(without.text, nullptr);
  EXPECT_EQ(without.request.tokenizer, "");
  served_ = FindServedModels({odd, testing::Target("b:1", "m")});
  ParsedGeneration mixed;
  ASSERT_FALSE(Parse(Text("x"), &mixed));
  EXPECT_EQ(mixed.request.tokenizer, "tok");
  TokenizerWatch watch;
  EXPECT_EQ(watch.Look(catalog_, {odd, testing::Target("b:1", "m")}), 1);
  EXPECT_EQ(watch.Look(catalog_, {odd, testing::Target("c:1", "m", "third")}), 1);
}

TEST_F(GenerationParserTest, DraftWorkersServeNoModel) {
  auto draft = testing::Target("d:1", "small");
  draft.role = "draft";
  served_ = FindServedModels({testing::Target("a:1", "m"), draft});
  ASSERT_EQ(served_.models.size(), 1u);
  EXPECT_FALSE(Parse(Text("x")));
}

}  // namespace
}  // namespace paceline

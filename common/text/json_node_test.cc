#include "common/text/json_node.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& text) {
  return std::string(ParseJson(text).status().message());
}

TEST(ParseJson, TakesWhatIsJson) {
  const auto document = ParseJson(R"({"a": [1, -2, 2.5, true, null, "x\u00e9"], "b": {}})");
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_EQ(document->at("a").size(), 6);
  EXPECT_EQ(document->at("a")[5], "xé");
}

TEST(ParseJson, EveryCutIsAnError) {
  const std::string text = R"({"a": [1, {"b": "c\n"}], "d": [true, null, [], {}]})";
  ASSERT_TRUE(ParseJson(text).ok());
  for (size_t cut = 0; cut < text.size(); ++cut) {
    const auto document = ParseJson(text.substr(0, cut));
    EXPECT_EQ(document.status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, cut);
  }
}

TEST(ParseJson, RefusesWhatIsNot) {
  EXPECT_THAT(ErrorOf("{} x"), HasSubstr("not a JSON document"));
  EXPECT_THAT(ErrorOf("{\"a\": 1, \"a\": 2}"), HasSubstr("key \"a\" comes twice"));
  EXPECT_THAT(ErrorOf("\"\xff\""), HasSubstr("UTF-8"));
  EXPECT_THAT(ErrorOf("\"\\ud800\""), HasSubstr("surrogate"));
  EXPECT_THAT(ErrorOf("[1e999]"), HasSubstr("not a JSON document"));
}

TEST(ParseJson, DepthIsBounded) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(ParseJson(nested(kMaxJsonDepth)).ok());
  EXPECT_THAT(ErrorOf(nested(kMaxJsonDepth + 1)), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(ErrorOf(std::string(1 << 20, '[')), HasSubstr("nested deeper than 64"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_THAT(ErrorOf(objects), HasSubstr("nested deeper than 64"));
}

TEST(JsonNode, ErrorsSayWhere) {
  const auto document = ParseJson(
      R"({"model": {"merges": ["a", 7], "id": 18446744073709551615, "flag": 1, "x": 2.0}})");
  ASSERT_TRUE(document.ok());
  const JsonNode root(&*document, "");
  const JsonNode model = *root.Get("model");
  const auto merges = model.Array("merges");
  ASSERT_TRUE(merges.ok());
  EXPECT_EQ((*merges)[1].String().status().message(),
            "model.merges[1]: expected a string, found number");
  EXPECT_THAT(model.Int("id").status().message(), HasSubstr("model.id: 18446744073709551615"));
  EXPECT_THAT(model.Bool("flag", false).status().message(), HasSubstr("model.flag: expected true"));
  EXPECT_THAT(model.Int("x").status().message(), HasSubstr("model.x: expected an integer"));
  EXPECT_THAT(model.String("none").status().message(), HasSubstr("model.none: expected a string"));
  EXPECT_THAT(merges->front().Get("a").status().message(),
              HasSubstr("model.merges[0]: expected an object"));
  EXPECT_EQ(root.Unsupported("this").message(), "top level: this is not supported");
  EXPECT_EQ(*model.String("none", "absent"), "absent");
  EXPECT_EQ(*model.Bool("none", true), true);
  EXPECT_TRUE(model.Get("none")->IsNull());
}

TEST(Quoted, IsShortAndPrintable) {
  EXPECT_EQ(Quoted("a\"\n"), R"("a\"\n")");
  EXPECT_EQ(Quoted(std::string(100, 'x')), "\"" + std::string(60, 'x') + "...\"");
}

}  // namespace
}  // namespace paceline

#include "cli/bench/bar_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <limits>

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Why a document is not well-formed XML, or empty: tags nest, attributes are quoted, and & begins a
// reference. Knows no comments and no CDATA, of which the chart has none.
std::string Fault(const std::string& xml) {
  std::vector<std::string> open;
  bool seen_root = false;
  for (size_t i = 0; i < xml.size();) {
    if (xml[i] == '&') {
      const std::string rest = xml.substr(i, 6);
      if (rest.rfind("&amp;", 0) != 0 && rest.rfind("&lt;", 0) != 0 && rest.rfind("&gt;", 0) != 0 &&
          rest != "&quot;") {
        return "a bare & at " + std::to_string(i);
      }
    }
    if (xml[i] == '>') return "a bare > at " + std::to_string(i);
    if (xml[i] != '<') {
      if (static_cast<unsigned char>(xml[i]) < 0x20 && xml[i] != '\n') return "a control character";
      ++i;
      continue;
    }
    size_t end = i + 1;
    for (bool quoted = false; end < xml.size() && (quoted || xml[end] != '>'); ++end) {
      if (xml[end] == '"') quoted = !quoted;
      if (xml[end] == '<') return "< within a tag at " + std::to_string(end);
    }
    if (end == xml.size()) return "a tag without an end";
    const std::string tag = xml.substr(i + 1, end - i - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" />", 1));
    i = end + 1;
    if (tag[0] == '?') continue;
    if (tag[0] == '/') {
      if (open.empty() || "/" + open.back() != tag) return "</" + tag + "> closes nothing";
      open.pop_back();
    } else if (tag.back() != '/') {
      if (open.empty() && seen_root) return "two roots";
      seen_root = true;
      open.push_back(name);
    }
  }
  return open.empty() ? "" : open.back() + " is not closed";
}

TEST(BarChart, WellFormedWhateverTheText) {
  BarPanel panel{"Speed & <rate>", "tokens/s \"each\"", {"a", "b<", "c"}, {}};
  panel.bars.push_back({"plain", {1, 2, 3}, Spread{6, 5, 7}, "6 > 5 & 4"});
  panel.bars.push_back({"ch\x01in", {0, 0, 0}, {}, ""});
  const std::string svg = DrawBarChart("A <b>title</b>", "\"sub\" & more", {panel});
  EXPECT_EQ(Fault(svg), "") << svg;
  EXPECT_THAT(svg, HasSubstr("A &lt;b&gt;title&lt;/b&gt;"));
  EXPECT_THAT(svg, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(svg, HasSubstr("role=\"img\""));
}

TEST(BarChart, BarsAreInProportion) {
  BarPanel panel{"p", "axis", {"only"}, {}};
  panel.bars.push_back({"one", {50}, {}, ""});
  panel.bars.push_back({"two", {100}, {}, ""});
  const std::string svg = DrawBarChart("t", "s", {panel});
  std::vector<double> widths;
  for (size_t at = svg.find("<rect x="); at != std::string::npos;
       at = svg.find("<rect x=", at + 1)) {
    widths.push_back(std::stod(svg.substr(svg.find("width=\"", at) + 7)));
  }
  ASSERT_EQ(widths.size(), 2u);
  EXPECT_NEAR(widths[1], 2 * widths[0], 0.2);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(BarChart, NothingAndNoNumbers) {
  EXPECT_EQ(Fault(DrawBarChart("", "", {})), "");
  BarPanel panel{"p", "axis", {"only"}, {}};
  panel.bars.push_back(
      {"x", {std::nan("")}, Spread{0, -1, std::numeric_limits<double>::infinity()}, ""});
  panel.bars.push_back({"y", {-5}, {}, ""});
  const std::string svg = DrawBarChart("t", "s", {panel, BarPanel{}});
  EXPECT_EQ(Fault(svg), "");
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(BarChart, TicksAreRound) {
  EXPECT_DOUBLE_EQ(TickStep(100, 5), 20);
  EXPECT_DOUBLE_EQ(TickStep(101, 5), 50);
  EXPECT_DOUBLE_EQ(TickStep(6, 6), 1);
  EXPECT_DOUBLE_EQ(TickStep(0.7, 6), 0.2);
  EXPECT_DOUBLE_EQ(TickStep(4300, 6), 1000);
}

}  // namespace
}  // namespace paceline

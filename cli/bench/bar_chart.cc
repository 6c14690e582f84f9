#include "cli/bench/bar_chart.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace paceline {
namespace {

// Pixels.
constexpr double kWidth = 760, kMargin = 24, kNameWidth = 92, kNoteWidth = 150;
constexpr double kHeaderHeight = 74, kTitleHeight = 44, kRowHeight = 30, kBarHeight = 18;
constexpr double kAxisHeight = 56, kLegendColumn = 136;
constexpr double kPlotLeft = kMargin + kNameWidth;
constexpr double kPlotWidth = kWidth - kPlotLeft - kNoteWidth - kMargin;

// Renderers without media queries show the light colours.
constexpr char kStyle[] = R"(<style>
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; fill: #1f2328; }
.page { fill: #ffffff; }
.title { font-size: 18px; font-weight: 600; }
.panel { font-size: 14px; font-weight: 600; }
.muted { fill: #59636e; font-size: 12px; }
.note { stroke: #ffffff; stroke-width: 4px; paint-order: stroke; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.axis { stroke: #818b98; stroke-width: 1; }
.whisker { stroke: #1f2328; stroke-width: 1.5; fill: none; }
.s0 { fill: #0969da; }
.s1 { fill: #bf8700; }
.s2 { fill: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.page { fill: #0d1117; }
.muted { fill: #9198a1; }
.note { stroke: #0d1117; }
.grid { stroke: #30363d; }
.axis { stroke: #656c76; }
.whisker { stroke: #f0f6fc; }
.s0 { fill: #4493f8; }
.s1 { fill: #d29922; }
.s2 { fill: #ab7df8; }
}
</style>
)";

std::string Escaped(const std::string& text) {
  std::string printable;
  for (const char c : text) {
    // XML has no control characters.
    printable += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return absl::StrReplaceAll(printable,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

double Finite(double value) { return std::isfinite(value) ? std::max(0.0, value) : 0; }

double Total(const Bar& bar) {
  double sum = 0;
  for (const double segment : bar.segments) sum += Finite(segment);
  return sum;
}

double Greatest(const BarPanel& panel) {
  double greatest = 0;
  for (const Bar& bar : panel.bars) {
    greatest = std::max(greatest, Total(bar));
    if (bar.whiskers.has_value()) greatest = std::max(greatest, Finite(bar.whiskers->greatest));
  }
  return greatest > 0 ? greatest : 1;
}

std::string Text(double x, double y, const char* anchor, const char* style,
                 const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">%s</text>\n",
                         x, y, anchor, style, Escaped(text));
}

std::string LineFromTo(double x1, double y1, double x2, double y2, const char* style) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n",
                         x1, y1, x2, y2, style);
}

// Draws one panel below `top`.
class PanelDrawing {
 public:
  PanelDrawing(const BarPanel& panel, double top)
      : panel_(panel),
        top_(top),
        bottom_(top + kTitleHeight + static_cast<double>(panel.bars.size()) * kRowHeight),
        step_(TickStep(Greatest(panel), 6)),
        limit_(std::ceil(Greatest(panel) / step_ - 1e-9) * step_) {}

  std::string Draw() const {
    std::string out = Text(kMargin, top_ + 18, "start", "panel", panel_.title);
    if (panel_.series.size() > 1) out += Legend();
    out += Axis();
    for (size_t i = 0; i < panel_.bars.size(); ++i) {
      out += DrawBar(panel_.bars[i], top_ + kTitleHeight + static_cast<double>(i) * kRowHeight);
    }
    return out;
  }

 private:
  double X(double value) const { return kPlotLeft + Finite(value) / limit_ * kPlotWidth; }

  std::string Legend() const {
    std::string out;
    double x = kWidth - kMargin - kLegendColumn * static_cast<double>(panel_.series.size());
    for (size_t i = 0; i < panel_.series.size(); ++i, x += kLegendColumn) {
      out += absl::StrFormat(
          "<rect x=\"%.1f\" y=\"%.1f\" width=\"11\" height=\"11\" rx=\"2\" class=\"s%d\"/>\n", x,
          top_ + 8, i);
      out += Text(x + 17, top_ + 18, "start", "muted", panel_.series[i]);
    }
    return out;
  }

  std::string Axis() const {
    std::string out;
    const double top = top_ + kTitleHeight - 8;
    const int ticks = static_cast<int>(std::lround(limit_ / step_));
    for (int i = 0; i <= ticks; ++i) {
      const double value = i * step_;
      out += LineFromTo(X(value), top, X(value), bottom_, i == 0 ? "axis" : "grid");
      out += Text(X(value), bottom_ + 16, "middle", "muted", absl::StrCat(value));
    }
    return out +
           Text(kPlotLeft + kPlotWidth / 2, bottom_ + 35, "middle", "muted", panel_.axis_label);
  }

  std::string DrawBar(const Bar& bar, double y) const {
    const double middle = y + kBarHeight / 2;
    std::string out = Text(kPlotLeft - 10, middle + 4.5, "end", "name", bar.name);
    double from = 0;
    for (size_t i = 0; i < bar.segments.size(); ++i) {
      const double to = from + Finite(bar.segments[i]);
      out += absl::StrFormat(
          "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"s%d\"/>\n", X(from),
          y, X(to) - X(from), kBarHeight, i % 3);
      from = to;
    }
    double end = X(from);
    if (bar.whiskers.has_value() && bar.whiskers->greatest > bar.whiskers->least) {
      out += Whiskers(*bar.whiskers, middle);
      end = std::max(end, X(bar.whiskers->greatest));
    }
    return out + Text(end + 8, middle + 4.5, "start", "note", bar.note);
  }

  std::string Whiskers(const Spread& spread, double middle) const {
    const double low = X(spread.least), high = X(spread.greatest);
    return LineFromTo(low, middle, high, middle, "whisker") +
           LineFromTo(low, middle - 4, low, middle + 4, "whisker") +
           LineFromTo(high, middle - 4, high, middle + 4, "whisker");
  }

  const BarPanel& panel_;
  const double top_, bottom_, step_, limit_;
};

double HeightOf(const BarPanel& panel) {
  return kTitleHeight + static_cast<double>(panel.bars.size()) * kRowHeight + kAxisHeight;
}

}  // namespace

double TickStep(double greatest, int count) {
  const double raw = greatest / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power * (1 + 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::string DrawBarChart(const std::string& title, const std::string& subtitle,
                         const std::vector<BarPanel>& panels) {
  double height = kHeaderHeight;
  for (const BarPanel& panel : panels) height += HeightOf(panel);
  std::string out = absl::StrFormat(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
      "height=\"%.0f\" role=\"img\" aria-labelledby=\"title desc\">\n"
      "<title id=\"title\">%s</title>\n<desc id=\"desc\">%s</desc>\n%s"
      "<rect class=\"page\" width=\"100%%\" height=\"100%%\"/>\n",
      kWidth, height, kWidth, height, Escaped(title), Escaped(subtitle), kStyle);
  out += Text(kMargin, 34, "start", "title", title);
  out += Text(kMargin, 55, "start", "muted", subtitle);
  double top = kHeaderHeight;
  for (const BarPanel& panel : panels) {
    out += PanelDrawing(panel, top).Draw();
    top += HeightOf(panel);
  }
  return out + "</svg>\n";
}

}  // namespace paceline

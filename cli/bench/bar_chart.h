// Horizontal bars as a self-contained SVG document, readable on light and dark screens.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/bench/distribution.h"

namespace paceline {

struct Bar {
  std::string name;
  std::vector<double> segments;    // side by side, each >= 0; one per series
  std::optional<Spread> whiskers;  // drawn from least to greatest
  std::string note;                // behind the bar
};

struct BarPanel {
  std::string title;
  std::string axis_label;  // what and in which unit
  std::vector<std::string>
      series;             // names of the segments; a legend where there are several (<= 3)
  std::vector<Bar> bars;  // top to bottom
};

// Any text: it is escaped. Values that are no finite numbers count as 0.
std::string DrawBarChart(const std::string& title, const std::string& subtitle,
                         const std::vector<BarPanel>& panels);

// The step of an axis from 0 to `greatest` with about `count` ticks: 1, 2 or 5 times a power of
// ten.
double TickStep(double greatest, int count);

}  // namespace paceline

// A line on a terminal's standard error that is written over; nothing where standard error is none.
#pragma once

#include <cstdio>
#include <string>

namespace paceline {

class ProgressLine {
 public:
  explicit ProgressLine(std::FILE* out);
  // Clears the line.
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;

  bool shown() const { return terminal_; }
  // One line, ASCII; cut to the terminal's width.
  void Show(const std::string& text);
  void Clear();

 private:
  std::FILE* const out_;
  const bool terminal_;
};

// "[######....]" with `width` places; share in [0, 1] is clamped.
std::string ProgressBar(double share, int width);

}  // namespace paceline

// Cells in columns: the first column to the left, all others to the right.
#pragma once

#include <string>
#include <vector>

namespace paceline {

class TextTable {
 public:
  // A row may have fewer cells than others. UTF-8 is not counted: cells are ASCII.
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  // Two spaces between columns, a line feed behind each row, no space before it.
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace paceline

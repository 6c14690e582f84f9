// A file of a test, removed with it.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace paceline {

class TestFile {
 public:
  // `name` keeps its ending.
  TestFile(const std::string& name, const std::string& content)
      : path_("/tmp/paceline-" + std::to_string(getpid()) + "-" + name) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TestFile() { std::remove(path_.c_str()); }
  TestFile(const TestFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace paceline

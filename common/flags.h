// Command-line flags of all binaries: --name=value or --name value; a bool also as --name and
// --no-name. Everything else is a positional argument; "--" ends the flags. Values land in
// variables that the caller owns and that hold the defaults.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace paceline {

// Exit statuses of every binary.
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

class Flags {
 public:
  // `summary` is the first line of the help text.
  explicit Flags(std::string summary) : summary_(std::move(summary)) {}

  void Add(const std::string& name, std::string* value, const std::string& help);
  void Add(const std::string& name, int32_t* value, const std::string& help);
  void Add(const std::string& name, int64_t* value, const std::string& help);
  void Add(const std::string& name, uint64_t* value, const std::string& help);
  void Add(const std::string& name, double* value, const std::string& help);
  void Add(const std::string& name, bool* value, const std::string& help);
  // "on" or "off", "a|b|c": refused when not one of them.
  void AddChoice(const std::string& name, std::string* value, std::vector<std::string> choices,
                 const std::string& help);

  // Returns the positional arguments. INVALID_ARGUMENT names the flag: unknown, without a value,
  // not a number, out of range, not one of the choices.
  absl::StatusOr<std::vector<std::string>> Parse(int argc, const char* const* argv);

  // As Parse, for main: --help prints the help and exits 0, an error prints it and exits 2.
  std::vector<std::string> ParseOrExit(int argc, const char* const* argv);

  // Whether the flag was given.
  bool Given(const std::string& name) const;

  std::string Help() const;

 private:
  struct Flag {
    std::string name, help, shown_default;
    bool is_bool = false;
    bool given = false;
    std::function<absl::Status(const std::string&)> set;
  };
  template <typename T>
  void AddNumber(const std::string& name, T* value, const std::string& help);
  Flag* Find(const std::string& name);
  absl::Status Take(const std::string& argument, int argc, const char* const* argv, int* i);

  std::string summary_;
  std::vector<Flag> flags_;
};

// "a,b,c" -> {"a", "b", "c"}; empty parts are dropped.
std::vector<std::string> SplitList(const std::string& text);

}  // namespace paceline

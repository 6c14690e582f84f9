#include "common/flags.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

bool ParseNumber(const std::string& text, int32_t* v) { return absl::SimpleAtoi(text, v); }
bool ParseNumber(const std::string& text, int64_t* v) { return absl::SimpleAtoi(text, v); }
bool ParseNumber(const std::string& text, uint64_t* v) { return absl::SimpleAtoi(text, v); }
bool ParseNumber(const std::string& text, double* v) { return absl::SimpleAtod(text, v); }

absl::Status SetBool(const std::string& name, const std::string& text, bool* value) {
  if (absl::SimpleAtob(text, value)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, " is '", text, "'; it must be true or false"));
}

}  // namespace

template <typename T>
void Flags::AddNumber(const std::string& name, T* value, const std::string& help) {
  flags_.push_back(
      {name, help, absl::StrCat(*value), false, false, [name, value](const std::string& text) {
         T parsed;
         if (!ParseNumber(text, &parsed)) {
           return absl::InvalidArgumentError(
               absl::StrCat("--", name, " is '", text, "'; it must be a number in range"));
         }
         *value = parsed;
         return absl::OkStatus();
       }});
}

void Flags::Add(const std::string& name, int32_t* value, const std::string& help) {
  AddNumber(name, value, help);
}
void Flags::Add(const std::string& name, int64_t* value, const std::string& help) {
  AddNumber(name, value, help);
}
void Flags::Add(const std::string& name, uint64_t* value, const std::string& help) {
  AddNumber(name, value, help);
}
void Flags::Add(const std::string& name, double* value, const std::string& help) {
  AddNumber(name, value, help);
}

void Flags::Add(const std::string& name, std::string* value, const std::string& help) {
  flags_.push_back({name, help, *value, false, false, [value](const std::string& text) {
                      *value = text;
                      return absl::OkStatus();
                    }});
}

void Flags::Add(const std::string& name, bool* value, const std::string& help) {
  flags_.push_back({name, help, *value ? "true" : "false", true, false,
                    [name, value](const std::string& text) { return SetBool(name, text, value); }});
}

void Flags::AddChoice(const std::string& name, std::string* value, std::vector<std::string> choices,
                      const std::string& help) {
  const std::string list = absl::StrJoin(choices, "|");
  flags_.push_back({name, absl::StrCat(help, " (", list, ")"), *value, false, false,
                    [name, value, list, choices](const std::string& text) {
                      if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
                        return absl::InvalidArgumentError(
                            absl::StrCat("--", name, " is '", text, "'; it must be one of ", list));
                      }
                      *value = text;
                      return absl::OkStatus();
                    }});
}

Flags::Flag* Flags::Find(const std::string& name) {
  auto it =
      std::find_if(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name == name; });
  return it == flags_.end() ? nullptr : &*it;
}

absl::Status Flags::Take(const std::string& argument, int argc, const char* const* argv, int* i) {
  const size_t equals = argument.find('=');
  const std::string name = argument.substr(0, equals);
  Flag* flag = Find(name);
  if (flag == nullptr && name.rfind("no-", 0) == 0 && equals == std::string::npos) {
    Flag* negated = Find(name.substr(3));
    if (negated != nullptr && negated->is_bool) {
      negated->given = true;
      return negated->set("false");
    }
  }
  if (flag == nullptr) return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name));
  flag->given = true;
  if (equals != std::string::npos) return flag->set(argument.substr(equals + 1));
  if (flag->is_bool) return flag->set("true");
  if (*i + 1 >= argc) return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
  return flag->set(argv[++*i]);
}

absl::StatusOr<std::vector<std::string>> Flags::Parse(int argc, const char* const* argv) {
  std::vector<std::string> positional;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--") {
      positional.insert(positional.end(), argv + i + 1, argv + argc);
      break;
    }
    if (argument.size() > 2 && argument.rfind("--", 0) == 0) {
      RETURN_IF_ERROR(Take(argument.substr(2), argc, argv, &i));
    } else {
      positional.push_back(argument);
    }
  }
  return positional;
}

std::vector<std::string> Flags::ParseOrExit(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--") break;
    if (argument == "--help" || argument == "-h") {
      std::fputs(Help().c_str(), stdout);
      std::exit(0);
    }
  }
  absl::StatusOr<std::vector<std::string>> positional = Parse(argc, argv);
  if (!positional.ok()) {
    std::fprintf(stderr, "error: %s\n(--help lists the flags)\n",
                 std::string(positional.status().message()).c_str());
    std::exit(kExitUsage);
  }
  return *std::move(positional);
}

bool Flags::Given(const std::string& name) const {
  return std::any_of(flags_.begin(), flags_.end(),
                     [&](const Flag& f) { return f.name == name && f.given; });
}

std::string Flags::Help() const {
  std::string out = absl::StrCat(summary_, "\n");
  for (const Flag& f : flags_) {
    absl::StrAppend(&out, "  --", f.name, "\n      ", f.help,
                    f.shown_default.empty() ? "" : absl::StrCat(" [", f.shown_default, "]"), "\n");
  }
  return out;
}

std::vector<std::string> SplitList(const std::string& text) {
  return absl::StrSplit(text, ',', absl::SkipEmpty());
}

}  // namespace paceline

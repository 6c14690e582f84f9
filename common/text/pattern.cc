#include "common/text/pattern.h"

#include <chrono>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/text/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include "pcre2.h"

namespace paceline {
namespace {

constexpr size_t kMaxExpression = 64 * 1024;  // bytes
constexpr uint32_t kMaxSteps = 10'000'000;    // of one match
constexpr uint32_t kMaxHeapKib = 256 * 1024;  // of one match, without JIT
constexpr size_t kJitStack = 32 * 1024;       // bytes at first
constexpr size_t kMaxJitStack = 8 * 1024 * 1024;
constexpr double kMaxSeconds = 5;            // of one text,
constexpr double kMaxSecondsPerByte = 4e-6;  // and this for each of its bytes

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* p) const {
    kFree(p);
  }
};

using CodePtr = std::unique_ptr<pcre2_code, Freer<pcre2_code_free>>;
using DataPtr = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;
using CompileContextPtr = std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>>;
using MatchContextPtr = std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>>;
using JitStackPtr = std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>>;

std::string Reason(int code) {
  PCRE2_UCHAR message[256] = {};
  pcre2_get_error_message(code, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

// The working memory of searches: one for each thread, for all expressions. A search does not call
// back into another before it has read its result.
struct Search {
  Search()
      : context(pcre2_match_context_create(nullptr)),
        data(pcre2_match_data_create(/*ovecsize=*/1, nullptr)),
        jit_stack(pcre2_jit_stack_create(kJitStack, kMaxJitStack, nullptr)) {
    pcre2_set_match_limit(context.get(), kMaxSteps);
    pcre2_set_depth_limit(context.get(), kMaxSteps);
    pcre2_set_heap_limit(context.get(), kMaxHeapKib);
    if (jit_stack != nullptr) pcre2_jit_stack_assign(context.get(), nullptr, jit_stack.get());
  }
  static Search& OfThread() {
    thread_local Search search;
    return search;
  }
  MatchContextPtr context;
  DataPtr data;  // of the whole match only
  JitStackPtr jit_stack;
};

// A search that takes too long is given up: expressions come from files, texts from clients.
class Deadline {
 public:
  explicit Deadline(size_t bytes)
      : end_(Clock::now() +
             std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                 kMaxSeconds + kMaxSecondsPerByte * static_cast<double>(bytes)))) {}
  bool Passed() { return (++calls_ & 15) == 0 && Clock::now() > end_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point end_;
  uint32_t calls_ = 0;
};

}  // namespace

struct Pattern::Compiled {
  CodePtr code;
  std::string expression;
};

Pattern::Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Pattern Pattern::Literal(std::string text) {
  Pattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

absl::StatusOr<Pattern> Pattern::Regex(const std::string& expression) {
  CompileContextPtr context(pcre2_compile_context_create(nullptr));
  pcre2_set_max_pattern_length(context.get(), kMaxExpression);
  // Anchored: each place is tried by a call of its own, so that the deadline is looked at between.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C;
  int code = 0;
  size_t offset = 0;
  CodePtr compiled(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                 kOptions, &code, &offset, context.get()));
  if (compiled == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("bad regular expression: ", Reason(code),
                                                   " at byte ", offset, " of ", expression.size()));
  }
  // Where no executable memory is to be had, the interpreter gives the same matches.
  pcre2_jit_compile(compiled.get(), PCRE2_JIT_COMPLETE);
  Pattern pattern;
  pattern.regex_ = std::make_unique<Compiled>(Compiled{std::move(compiled), expression});
  return pattern;
}

absl::Status Pattern::ForEachMatch(std::string_view text,
                                   absl::FunctionRef<void(size_t begin, size_t end)> found) const {
  if (regex_ == nullptr) {
    if (literal_.empty()) return absl::OkStatus();
    for (size_t pos = text.find(literal_); pos != text.npos;
         pos = text.find(literal_, pos + literal_.size())) {
      found(pos, pos + literal_.size());
    }
    return absl::OkStatus();
  }
  if (text.empty()) return absl::OkStatus();
  Search& search = Search::OfThread();
  Deadline deadline(text.size());
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t last_end = 0;
  for (size_t pos = 0; pos < text.size();) {
    const int rc = pcre2_match(regex_->code.get(), subject, text.size(), pos, PCRE2_NO_UTF_CHECK,
                               search.data.get(), search.context.get());
    if ((rc < 0 && rc != PCRE2_ERROR_NOMATCH) || deadline.Passed()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "regular expression \"", regex_->expression, "\" at byte ", pos, " of a text of ",
          text.size(), " bytes: ", rc < 0 ? Reason(rc) : "too slow"));
    }
    const size_t* ends = pcre2_get_ovector_pointer(search.data.get());
    const size_t begin = ends[0];
    const size_t end = ends[1];
    // \K may move a match's begin; one that lies outside the rest of the text is none.
    const bool matched = rc >= 0 && begin >= last_end && begin <= end;
    if (matched) found(begin, end);
    if (matched) last_end = end;
    pos = matched && end > pos ? end : pos + DecodeUtf8(text, pos).size;
  }
  return absl::OkStatus();
}

}  // namespace paceline

// CHECK for our own bugs: prints file, line, condition and message, then aborts. The world's faults
// (files, peers, clients) are absl::Status, never CHECK.
#pragma once

#include <sstream>
#include <string>

namespace paceline::internal {

// Collects the message streamed after CHECK(...) and aborts when it is destroyed.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

struct CheckVoidify {
  void operator&(std::ostream&) {}
};

}  // namespace paceline::internal

#define PACELINE_CHECK(condition)                      \
  (condition) ? (void)0                                \
              : ::paceline::internal::CheckVoidify() & \
                    ::paceline::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#define CHECK(condition) PACELINE_CHECK(condition)
#define CHECK_EQ(a, b) PACELINE_CHECK((a) == (b)) << (a) << " vs " << (b) << " "
#define CHECK_NE(a, b) PACELINE_CHECK((a) != (b)) << (a) << " vs " << (b) << " "
#define CHECK_LT(a, b) PACELINE_CHECK((a) < (b)) << (a) << " vs " << (b) << " "
#define CHECK_LE(a, b) PACELINE_CHECK((a) <= (b)) << (a) << " vs " << (b) << " "
#define CHECK_GT(a, b) PACELINE_CHECK((a) > (b)) << (a) << " vs " << (b) << " "
#define CHECK_GE(a, b) PACELINE_CHECK((a) >= (b)) << (a) << " vs " << (b) << " "

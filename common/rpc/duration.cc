#include "common/rpc/duration.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

constexpr int64_t kNanosPerSecond = 1'000'000'000;
constexpr int64_t kMaxSeconds = Duration::max().count() / kNanosPerSecond - 1;

}  // namespace

void ToProto(Duration duration, google::protobuf::Duration* proto) {
  proto->set_seconds(duration.count() / kNanosPerSecond);
  proto->set_nanos(static_cast<int32_t>(duration.count() % kNanosPerSecond));
}

absl::StatusOr<Duration> FromProto(const google::protobuf::Duration& proto) {
  const int64_t seconds = proto.seconds(), nanos = proto.nanos();
  const bool signs_differ = (seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0);
  if (seconds > kMaxSeconds || seconds < -kMaxSeconds || nanos <= -kNanosPerSecond ||
      nanos >= kNanosPerSecond || signs_differ) {
    return absl::InvalidArgumentError(
        absl::StrCat("a duration of ", seconds, " s and ", nanos, " ns is out of range"));
  }
  return Duration(seconds * kNanosPerSecond + nanos);
}

}  // namespace paceline

#include "router/service/random_id.h"

#include <unistd.h>

#include "absl/strings/str_format.h"
#include "common/check.h"

namespace paceline {

uint64_t RandomBits() {
  uint64_t bits = 0;
  CHECK_EQ(getentropy(&bits, sizeof bits), 0) << "the kernel has no random bytes";
  return bits;
}

std::string RandomId() { return absl::StrFormat("%016x%016x", RandomBits(), RandomBits()); }

}  // namespace paceline

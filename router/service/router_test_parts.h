// What the tests of this folder share: a small tokenizer, a directory of made-up workers.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/rpc/duration.h"
#include "common/text/test_texts.h"
#include "router/service/cluster_directory.h"
#include "router/service/model_catalog.h"

namespace paceline::testing {

// Bytes are tokens 0 to 255; <|end|> is 261.
inline std::unique_ptr<Tokenizer> ByteTokenizer() {
  auto tokenizer = Tokenizer::FromJson(ByteLevelFile().dump());
  CHECK(tokenizer.ok()) << tokenizer.status().ToString();
  return *std::move(tokenizer);
}

inline constexpr int32_t kVocab = 262, kContext = 4096;

inline ClusterDirectory::Member Target(const std::string& address, const std::string& model,
                                       const std::string& tokenizer = "tok") {
  ClusterDirectory::Member m;
  m.address = address;
  m.role = "target";
  m.reached = true;
  m.report.set_ready(true);
  worker::v1::WorkerInfo* info = m.report.mutable_info();
  info->set_role("target");
  info->set_model(model);
  info->set_numerics_fingerprint("cpu-x");
  info->set_tokenizer_fingerprint(tokenizer);
  info->set_vocab_size(kVocab);
  info->set_max_context(kContext);
  return m;
}

// Answers at once, as told.
class FakeDirectory final : public ClusterDirectory {
 public:
  std::vector<Member> Members() const override {
    std::lock_guard lock(mutex_);
    return members_;
  }
  void ListSessions(Duration, std::function<void(std::vector<SessionsAt>)> done) override {
    done(sessions);
  }
  void DeleteSession(const std::string& session_id, Duration,
                     std::function<void(absl::Status)> done) override {
    deleted.push_back(session_id);
    done(delete_status);
  }
  void DrainWorker(const std::string& address, Duration,
                   std::function<void(absl::Status)> done) override {
    for (const Member& m : Members()) {
      if (m.address != address) continue;
      drained.push_back(address);
      return done(absl::OkStatus());
    }
    done(absl::NotFoundError("no worker has the address " + address));
  }
  void SetMembers(std::vector<Member> members) {
    std::lock_guard lock(mutex_);
    members_ = std::move(members);
  }

  std::vector<SessionsAt> sessions;
  absl::Status delete_status;
  std::vector<std::string> deleted, drained;

 private:
  mutable std::mutex mutex_;
  std::vector<Member> members_;
};

}  // namespace paceline::testing

#include "worker/engine/warm_up.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr int32_t kPromptTokens = 200, kOutputTokens = 4;

// An engine owns its runner; this one only borrows it.
class BorrowedRunner final : public Runner {
 public:
  explicit BorrowedRunner(Runner* runner) : runner_(runner) {}
  const RunnerInfo& info() const override { return runner_->info(); }
  absl::Status Launch(const StepPlan& plan) override { return runner_->Launch(plan); }
  absl::StatusOr<StepResult> Wait() override { return runner_->Wait(); }

 private:
  Runner* const runner_;
};

}  // namespace

absl::Status WarmUp(Runner* runner, const EngineOptions& options, const Clock& clock) {
  const RunnerInfo& info = runner->info();
  const int64_t room =
      std::min<int64_t>(info.max_context, int64_t{info.num_blocks} * info.block_size);
  GenerationRequest request;
  request.request_id = "warm-up";
  request.sampling.max_tokens = kOutputTokens;
  request.sampling.ignore_eos = true;
  const auto length = static_cast<int32_t>(std::min<int64_t>(kPromptTokens, room - kOutputTokens));
  if (length < 1) return absl::OkStatus();  // no request could show anything
  for (int32_t i = 0; i < length; ++i) request.prompt.push_back(i % info.vocab_size);

  bool done = false;
  Engine engine(options, std::make_unique<BorrowedRunner>(runner), nullptr, clock, nullptr,
                [&done](const EngineOutput& output) { done = done || !output.finished.empty(); });
  RETURN_IF_ERROR(engine.Submit(0, std::move(request)));
  while (!done) RETURN_IF_ERROR(engine.Step().status());
  return absl::OkStatus();
}

}  // namespace paceline

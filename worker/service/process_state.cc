#include "worker/service/process_state.h"

#include <random>

#include "absl/strings/str_cat.h"
#include "common/rpc/error.h"
#include "common/types/sampling_params.h"

namespace paceline {

ProcessState::ProcessState(const std::string& role, const std::string& model) {
  std::random_device random;
  info_.set_incarnation(uint64_t{random()} << 32 | random());
  info_.set_role(role);
  info_.set_model(model);
  info_.set_sampler_version(kSamplerVersion);
}

void ProcessState::SetLoaded(const RunnerInfo& runner, const std::string& tokenizer_fingerprint) {
  std::lock_guard lock(mutex_);
  info_.set_model_fingerprint(runner.model_fingerprint);
  info_.set_numerics_fingerprint(runner.numerics_fingerprint);
  info_.set_tokenizer_fingerprint(tokenizer_fingerprint);
  info_.set_vocab_size(runner.vocab_size);
  info_.set_max_context(runner.max_context);
  info_.mutable_eos_token_ids()->Assign(runner.eos_token_ids.begin(), runner.eos_token_ids.end());
  info_.set_block_size(runner.block_size);
  info_.set_num_blocks(runner.num_blocks);
}

worker::v1::WorkerInfo ProcessState::info() const {
  std::lock_guard lock(mutex_);
  return info_;
}

absl::Status ModelLoadingError(const std::string& model) {
  return ErrorBuilder(absl::StatusCode::kUnavailable,
                      absl::StrCat("the model \"", model, "\" is still being loaded"))
      .Reason("MODEL_LOADING", {{"model", model}})
      .RetryAfter(std::chrono::seconds(1))
      .ToAbsl();
}

}  // namespace paceline

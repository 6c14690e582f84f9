// The worker protocol's messages <-> values. What comes from the wire is checked for form (sizes,
// pairs, enums, durations); ranges that depend on the model are the engine's to check.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/types/generation.h"
#include "common/types/sampling_params.h"
#include "paceline/worker/v1/worker.pb.h"

namespace paceline {

inline constexpr int kMaxWireSamples = 16;
inline constexpr int kMaxWireIdBytes = 256;  // request_id, session_id, cache_salt

void ToProto(const SamplingParams& params, worker::v1::Sampling* proto);
absl::StatusOr<SamplingParams> FromProto(const worker::v1::Sampling& proto);

worker::v1::DecodingMode ToProto(DecodingMode mode);
absl::StatusOr<DecodingMode> FromProto(worker::v1::DecodingMode mode);
worker::v1::DraftStrategy ToProto(DraftStrategy strategy);
absl::StatusOr<DraftStrategy> FromProto(worker::v1::DraftStrategy strategy);
worker::v1::FinishReason ToProto(FinishReason reason);
absl::StatusOr<FinishReason> FromProto(worker::v1::FinishReason reason);

// Deadlines travel as the time left at `now`.
void ToProto(uint64_t handle, const GenerationRequest& request, TimePoint now,
             worker::v1::Submit* proto);
absl::StatusOr<GenerationRequest> FromProto(const worker::v1::Submit& proto, TimePoint now);

void ToProto(uint64_t handle, const SampleDelta& delta, worker::v1::Delta* proto);
absl::StatusOr<SampleDelta> FromProto(const worker::v1::Delta& proto);

void ToProto(uint64_t handle, const absl::Status& status, const GenerationUsage& usage,
             worker::v1::Finished* proto);
// The status of the request itself is *status; the returned one is about the message.
absl::StatusOr<GenerationUsage> FromProto(const worker::v1::Finished& proto, absl::Status* status);

}  // namespace paceline

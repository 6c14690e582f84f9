#include "router/service/serving_error_proto.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "common/rpc/error.h"
#include "common/text/utf8.h"

namespace paceline {
namespace {

// Of one text; message and details together stay well under the 8 KiB that peers take as headers.
constexpr size_t kMaxWordsBytes = 400;

std::string Clip(const std::string& words) {
  if (words.size() <= kMaxWordsBytes && IsUtf8(words)) return words;
  std::string clipped;
  Utf8Stream characters;
  characters.Push(words.substr(0, kMaxWordsBytes), &clipped);
  return words.size() <= kMaxWordsBytes ? clipped : clipped + "...";
}

std::string PublicField(const std::string& field) {
  static const std::map<std::string, std::string> names = {
      {"prompt", "generation.prompt"},
      {"token_ids", "generation.token_ids"},
      {"n", "generation.sampling.sample_count"},
      {"samples", "received"},
      {"request", "generation"},
      {"resume_token", "resume_token"}};
  if (auto it = names.find(field); it != names.end()) return it->second;
  return absl::StrCat("generation.sampling.", field);
}

}  // namespace

grpc::Status ToGrpcStatus(const ServingError& error, bool with_debug) {
  ErrorBuilder builder(error.code, Clip(error.message));
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : error.metadata) metadata[key] = Clip(value);
  builder.Reason(error.reason, metadata);
  for (const auto& f : error.fields) builder.Field(f.field, Clip(f.description));
  if (error.resource) builder.Resource(error.resource->type, Clip(error.resource->name));
  if (error.quota) builder.Quota(Clip(error.quota->subject), Clip(error.quota->description));
  if (error.precondition) {
    builder.Precondition(error.precondition->type, Clip(error.precondition->subject),
                         Clip(error.precondition->description));
  }
  if (error.retry_after) builder.RetryAfter(*error.retry_after);
  if (with_debug && !error.debug.empty()) builder.Debug(Clip(error.debug));
  return builder.ToGrpc();
}

void AddRetryPushback(const ServingError& error, grpc::ServerContextBase* context) {
  if (!error.retry_pushback) return;
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(*error.retry_pushback);
  context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(ms.count()));
}

ServingError WithPublicFields(ServingError error) {
  for (auto& f : error.fields) {
    if (f.field.find('.') != std::string::npos || f.field.starts_with("received")) continue;
    f.field = PublicField(f.field);
    if (error.metadata.count("field")) error.metadata["field"] = f.field;
  }
  return error;
}

}  // namespace paceline

#include "worker/service/draft_pairing.h"

#include "absl/strings/str_cat.h"
#include "common/rpc/error.h"

namespace paceline {
namespace {

grpc::Status Mismatch(const std::string& what, const std::string& mine, const std::string& theirs) {
  const std::string message = absl::StrCat("target and draft worker differ in their ", what, ": \"",
                                           mine, "\" here, \"", theirs, "\" there");
  return ErrorBuilder(absl::StatusCode::kFailedPrecondition, message)
      .Reason("DRAFT_PAIRING_MISMATCH", {{"field", what}, {"here", mine}, {"there", theirs}})
      .Precondition("PAIRING", what, message)
      .ToGrpc();
}

}  // namespace

draft::v1::Hello MakeHello(const worker::v1::WorkerInfo& info) {
  draft::v1::Hello hello;
  hello.set_incarnation(info.incarnation());
  hello.set_tokenizer_fingerprint(info.tokenizer_fingerprint());
  hello.set_sampler_version(info.sampler_version());
  hello.set_vocab_size(info.vocab_size());
  return hello;
}

grpc::Status CheckPairing(const draft::v1::Hello& mine, const draft::v1::Hello& theirs) {
  if (theirs.incarnation() == 0 || theirs.vocab_size() <= 0) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                        absl::StrCat("malformed hello: incarnation ", theirs.incarnation(),
                                     ", vocab_size ", theirs.vocab_size()));
  }
  if (mine.sampler_version() != theirs.sampler_version()) {
    return Mismatch("sampler_version", absl::StrCat(mine.sampler_version()),
                    absl::StrCat(theirs.sampler_version()));
  }
  if (mine.tokenizer_fingerprint() != theirs.tokenizer_fingerprint()) {
    return Mismatch("tokenizer_fingerprint", mine.tokenizer_fingerprint(),
                    theirs.tokenizer_fingerprint());
  }
  return grpc::Status::OK;
}

}  // namespace paceline

#include "cli/generate.h"

#include <grpcpp/client_context.h>

#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/router_client.h"
#include "common/flags.h"
#include "paceline/v1/inference.grpc.pb.h"

namespace paceline {
namespace {

struct GenerateOptions {
  std::string router = "127.0.0.1:50051", prompt, model, session, speculation = "auto", stop;
  int32_t max_tokens = 128, top_k = 0, n = 1, top_logprobs = 0;
  double temperature = 1, top_p = 1, min_p = 0, deadline = 0;
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  uint64_t seed = 0;
  bool json = false, stats = false, logprobs = false, ignore_eos = false;
};

struct Sample {
  std::string text;
  std::vector<int32_t> ids;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
};

struct Answer {
  v1::GenerationStart start;
  std::map<int32_t, Sample> samples;
  v1::GenerationSummary summary;
};

const char* FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_DEADLINE:
      return "deadline";
    case v1::FINISH_REASON_ERROR:
      return "error";
    default:
      return "";
  }
}

double Milliseconds(const google::protobuf::Duration& d) {
  return static_cast<double>(d.seconds()) * 1e3 + d.nanos() / 1e6;
}

void FillSampling(const GenerateOptions& o, bool seed_given, v1::SamplingSpec* sampling) {
  sampling->set_max_tokens(o.max_tokens);
  sampling->set_temperature(static_cast<float>(o.temperature));
  sampling->set_top_p(static_cast<float>(o.top_p));
  sampling->set_top_k(o.top_k);
  sampling->set_min_p(static_cast<float>(o.min_p));
  sampling->set_repetition_penalty(static_cast<float>(o.repetition_penalty));
  sampling->set_presence_penalty(static_cast<float>(o.presence_penalty));
  sampling->set_frequency_penalty(static_cast<float>(o.frequency_penalty));
  sampling->set_sample_count(o.n);
  sampling->set_ignore_eos(o.ignore_eos);
  if (seed_given) sampling->set_seed(o.seed);
  if (!o.stop.empty()) sampling->add_stop_strings(o.stop);
  if (o.logprobs) {
    sampling->set_logprobs(true);
    sampling->set_top_logprobs(o.top_logprobs);
  }
}

v1::StreamGenerateTextRequest MakeRequest(const GenerateOptions& o, bool seed_given) {
  v1::StreamGenerateTextRequest request;
  v1::GenerationSpec* spec = request.mutable_generation();
  spec->set_text(o.prompt);
  spec->set_model(o.model);
  spec->set_session_id(o.session);
  FillSampling(o, seed_given, spec->mutable_sampling());
  if (o.speculation == "always") spec->mutable_decoding()->mutable_draft();
  if (o.speculation == "off") spec->mutable_decoding()->mutable_plain();
  return request;
}

void PrintJson(const Answer& answer) {
  const v1::Usage& usage = answer.summary.usage();
  const v1::Timings& timings = answer.summary.timings();
  for (const auto& [index, sample] : answer.samples) {
    const nlohmann::ordered_json line = {{"sample", index},
                                         {"text", sample.text},
                                         {"token_ids", sample.ids},
                                         {"finish_reason", FinishName(sample.finish)},
                                         {"seed", answer.start.seed()},
                                         {"model", answer.start.model()},
                                         {"usage",
                                          {{"prompt_tokens", usage.prompt_token_count()},
                                           {"cached_tokens", usage.cached_token_count()},
                                           {"output_tokens", usage.output_token_count()},
                                           {"drafted_tokens", usage.drafted_token_count()},
                                           {"accepted_tokens", usage.accepted_token_count()}}},
                                         {"timings_ms",
                                          {{"queue", Milliseconds(timings.queue())},
                                           {"first_token", Milliseconds(timings.first_token())},
                                           {"total", Milliseconds(timings.total())}}},
                                         {"failovers", answer.summary.failover_count()}};
    std::printf(
        "%s\n",
        line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  }
}

void PrintStats(const Answer& answer) {
  const v1::Usage& usage = answer.summary.usage();
  const int32_t drafted = usage.drafted_token_count();
  const double total = Milliseconds(answer.summary.timings().total());
  std::fflush(stdout);  // the text comes first, into a file or pipe too
  std::fprintf(stderr,
               "\n[%d prompt tokens, %d cached; %d tokens in %.0f ms, %.0f tokens/s; first token "
               "after %.1f ms; drafts accepted %d of %d (%.0f %%); seed %llu]\n",
               usage.prompt_token_count(), usage.cached_token_count(), usage.output_token_count(),
               total, usage.output_token_count() * 1e3 / std::max(total, 1e-6),
               Milliseconds(answer.summary.timings().first_token()), usage.accepted_token_count(),
               drafted, drafted == 0 ? 0.0 : 100.0 * usage.accepted_token_count() / drafted,
               static_cast<unsigned long long>(answer.start.seed()));
}

// Text goes out as it comes where there is one sample; several are printed one after the other.
void TakeDelta(const v1::SampleDelta& delta, bool live, Answer* answer) {
  Sample& sample = answer->samples[delta.sample()];
  sample.text += delta.text();
  sample.ids.insert(sample.ids.end(), delta.token_ids().begin(), delta.token_ids().end());
  if (delta.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) sample.finish = delta.finish_reason();
  if (live) {
    std::fputs(delta.text().c_str(), stdout);
    std::fflush(stdout);
  }
}

grpc::Status Stream(const GenerateOptions& o, bool seed_given, Answer* answer) {
  auto stub = v1::InferenceService::NewStub(ConnectRouter(o.router));
  grpc::ClientContext context;
  if (o.deadline > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(static_cast<int64_t>(o.deadline * 1e3)));
  }
  auto reader = stub->StreamGenerateText(&context, MakeRequest(o, seed_given));
  const bool live = !o.json && o.n == 1;
  v1::StreamGenerateTextResponse message;
  while (reader->Read(&message)) {
    if (message.has_start()) answer->start = message.start();
    if (message.has_summary()) answer->summary = message.summary();
    if (!message.has_delta()) continue;
    TakeDelta(message.delta(), live, answer);
  }
  if (live && !answer->samples.empty()) std::fputs("\n", stdout);
  return reader->Finish();
}

void PrintSamples(const Answer& answer) {
  for (const auto& [index, sample] : answer.samples) {
    std::printf("--- sample %d (%s)\n%s\n", index, FinishName(sample.finish), sample.text.c_str());
  }
}

}  // namespace

int RunGenerate(int argc, const char* const* argv) {
  GenerateOptions o;
  Flags flags("paceline generate: sends one prompt to a router and prints what comes back");
  flags.Add("router", &o.router, "the router's address");
  flags.Add("prompt", &o.prompt, "the prompt's text");
  flags.Add("model", &o.model, "the model; default: the cluster's only one");
  flags.Add("session", &o.session, "session id");
  flags.Add("max-tokens", &o.max_tokens, "output tokens per sample");
  flags.Add("temperature", &o.temperature, "0 = greedy");
  flags.Add("top-p", &o.top_p, "nucleus");
  flags.Add("top-k", &o.top_k, "keep k; 0 = all");
  flags.Add("min-p", &o.min_p, "relative to the greatest probability");
  flags.Add("repetition-penalty", &o.repetition_penalty, "over prompt and output");
  flags.Add("presence-penalty", &o.presence_penalty, "over the output");
  flags.Add("frequency-penalty", &o.frequency_penalty, "over the output");
  flags.Add("seed", &o.seed, "decides all noise; default: drawn by the router");
  flags.Add("n", &o.n, "samples of one prompt");
  flags.Add("stop", &o.stop, "stop string");
  flags.Add("ignore-eos", &o.ignore_eos, "end-of-text is an ordinary token");
  flags.Add("logprobs", &o.logprobs, "ask for log-probabilities");
  flags.Add("top-logprobs", &o.top_logprobs, "and those of the best k");
  flags.Add("deadline", &o.deadline, "seconds; 0 = none");
  flags.AddChoice("speculation", &o.speculation, {"auto", "always", "off"}, "drafting");
  flags.Add("json", &o.json, "one JSON object per sample and line");
  flags.Add("stats", &o.stats, "tokens/s and acceptance on standard error at the end");
  const auto positional = flags.ParseOrExit(argc, argv);
  if (!positional.empty() || !flags.Given("prompt")) {
    std::fprintf(stderr, "error: %s\n",
                 positional.empty() ? "--prompt is missing"
                                    : ("unexpected argument " + positional[0]).c_str());
    return kExitUsage;
  }
  Answer answer;
  const grpc::Status status = Stream(o, flags.Given("seed"), &answer);
  if (!status.ok()) return ReportFailure(o.router, status);
  if (o.json) {
    PrintJson(answer);
  } else if (o.n != 1) {
    PrintSamples(answer);
  }
  if (o.stats) PrintStats(answer);
  return 0;
}

}  // namespace paceline

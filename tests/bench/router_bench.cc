// What the router costs: the real paceline-router as a child process, before timer-driven fake
// workers, under streams of a fixed rate. Prints the router's own time from its histograms (by
// stage, and per request: arrival until the submit is written, plus the first delta's frame read
// until the client's write), the same legs seen from outside (with the hops around it), and tokens
// relayed per CPU-second of the router.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/bench/http_get.h"
#include "cli/child_process.h"
#include "common/check.h"
#include "common/flags.h"
#include "common/rpc/channel.h"
#include "common/rpc/generation_proto.h"
#include "common/rpc/outbox.h"
#include "common/rpc/rpc_server.h"
#include "common/text/tokenizer.h"
#include "paceline/v1/inference.grpc.pb.h"
#include "paceline/worker/v1/worker.grpc.pb.h"

namespace paceline {
namespace {

using worker::v1::OpenStreamRequest;
using worker::v1::OpenStreamResponse;
using worker::v1::WatchStatusResponse;

struct Settings {
  std::string router, model = PACELINE_STANDIN_DIR "/target";
  int32_t workers = 2, streams = 64, prompt_tokens = 200, step_ms = 15, seconds = 20, warmup = 5;
  double rate = 20;
};

// When one request's submit came in at its worker, and when its first delta went out there.
struct WorkerTimes {
  TimePoint submitted{}, first_delta{};
};
class TimeTable {
 public:
  WorkerTimes& At(const std::string& id) { return times_[id]; }
  std::mutex mutex;

 private:
  std::map<std::string, WorkerTimes> times_;
};

// One delta of one token per request and step, all of a step in one frame.
class FakeWorker final : public worker::v1::WorkerService::CallbackService {
 public:
  FakeWorker(const Settings& settings, int32_t vocab_size, TimeTable* times)
      : step_(std::chrono::milliseconds(settings.step_ms)), times_(times) {
    report_.mutable_info()->set_role("target");
    report_.mutable_info()->set_model("fake");
    report_.mutable_info()->set_vocab_size(vocab_size);
    report_.mutable_info()->set_max_context(1 << 20);
    report_.set_ready(true);
    auto server = RpcServer::Start("127.0.0.1:0", {{"paceline.worker.v1.WorkerService", this}});
    CHECK(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    timer_ = std::thread([this] { RunSteps(); });
  }
  ~FakeWorker() override {
    stopped_ = true;
    timer_.join();
    server_->Shutdown(Duration::zero());
  }
  const std::string& address() const { return server_->address(); }

  grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse>* OpenStream(
      grpc::CallbackServerContext*) override {
    return new Stream(this);
  }
  grpc::ServerWriteReactor<WatchStatusResponse>* WatchStatus(
      grpc::CallbackServerContext*, const worker::v1::WatchStatusRequest*) override {
    return new Watch(this);
  }

 private:
  struct Request {
    std::string id;
    int32_t emitted = 0, max_tokens = 0;
    std::minstd_rand random;
  };
  class Stream final : public grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse> {
   public:
    explicit Stream(FakeWorker* worker) : worker_(worker) {
      std::lock_guard lock(worker_->mutex_);
      worker_->streams_.insert(this);
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return outbox_.Abort(grpc::Status::OK);
      const TimePoint now = SteadyClock::Get().Now();
      std::lock_guard lock(worker_->mutex_);
      for (const auto& submit : request_.submits()) {
        requests_[submit.handle()] = {submit.request_id(), 0, submit.sampling().max_tokens(),
                                      std::minstd_rand(static_cast<uint32_t>(submit.handle()))};
        std::lock_guard times_lock(worker_->times_->mutex);
        worker_->times_->At(submit.request_id()).submitted = now;
      }
      for (const auto& cancel : request_.cancels()) requests_.erase(cancel.handle());
      StartRead(&request_);
    }
    void OnWriteDone(bool ok) override { outbox_.WriteDone(ok); }
    void OnCancel() override { outbox_.Abort(grpc::Status::CANCELLED); }
    void OnDone() override {
      {
        std::lock_guard lock(worker_->mutex_);
        worker_->streams_.erase(this);
      }
      delete this;
    }
    void Step() {
      OpenStreamResponse frame;
      for (auto it = requests_.begin(); it != requests_.end();) {
        it = Emit(it->first, &it->second, &frame) ? requests_.erase(it) : std::next(it);
      }
      if (frame.deltas_size() > 0) outbox_.Push(std::move(frame), 0);
    }

   private:
    bool Emit(uint64_t handle, Request* r, OpenStreamResponse* frame) {
      if (r->emitted == 0) {
        std::lock_guard lock(worker_->times_->mutex);
        worker_->times_->At(r->id).first_delta = SteadyClock::Get().Now();
      }
      auto* delta = frame->add_deltas();
      delta->set_handle(handle);
      delta->set_first_index(r->emitted++);
      delta->add_tokens(static_cast<int32_t>(r->random() % worker_->report_.info().vocab_size()));
      if (r->emitted < r->max_tokens) return false;
      delta->set_finish(worker::v1::FINISH_REASON_LENGTH);
      ToProto(handle, absl::OkStatus(), {}, frame->add_finished());
      return true;
    }

    FakeWorker* const worker_;
    OpenStreamRequest request_;
    std::map<uint64_t, Request> requests_;
    Outbox<OpenStreamResponse> outbox_{
        {.write = [this](const OpenStreamResponse* m) { StartWrite(m); },
         .finish = [this](const grpc::Status& s) { Finish(s); },
         .merge =
             [](OpenStreamResponse* last, OpenStreamResponse* next) {
               last->MergeFrom(*next);
               return true;
             }},
        INT64_MAX};
  };
  class Watch final : public grpc::ServerWriteReactor<WatchStatusResponse> {
   public:
    explicit Watch(FakeWorker* worker) : worker_(worker) {
      std::lock_guard lock(worker_->mutex_);
      worker_->watches_.insert(this);
      Report();
    }
    void Report() { outbox_.Push(worker_->report_, 0); }
    void OnWriteDone(bool ok) override { outbox_.WriteDone(ok); }
    void OnCancel() override { outbox_.Abort(grpc::Status::CANCELLED); }
    void OnDone() override {
      {
        std::lock_guard lock(worker_->mutex_);
        worker_->watches_.erase(this);
      }
      delete this;
    }

   private:
    FakeWorker* const worker_;
    Outbox<WatchStatusResponse> outbox_{
        {.write = [this](const WatchStatusResponse* m) { StartWrite(m); },
         .finish = [this](const grpc::Status& s) { Finish(s); }},
        INT64_MAX};
  };

  void RunSteps() {
    TimePoint next = SteadyClock::Get().Now(), report = next;
    while (!stopped_) {
      next += step_;
      std::this_thread::sleep_until(next);
      std::lock_guard lock(mutex_);
      for (Stream* stream : streams_) stream->Step();
      if (next < report) continue;
      report = next + std::chrono::milliseconds(500);
      for (Watch* watch : watches_) watch->Report();
    }
  }

  const Duration step_;
  TimeTable* const times_;
  WatchStatusResponse report_;
  std::mutex mutex_;
  std::set<Stream*> streams_;
  std::set<Watch*> watches_;
  std::atomic<bool> stopped_ = false;
  std::unique_ptr<RpcServer> server_;
  std::thread timer_;
};

// All streams of the run, and what they saw.
struct Clients {
  std::mutex mutex;
  std::vector<double> submit_ms, first_delta_ms;
  std::atomic<int64_t> tokens = 0;
  std::atomic<int> active = 0, ended = 0, failed = 0;
  std::atomic<bool> measuring = false;
};

class ClientStream final : public grpc::ClientReadReactor<v1::StreamGenerateTextResponse> {
 public:
  ClientStream(v1::InferenceService::Stub* stub, v1::StreamGenerateTextRequest request,
               TimeTable* times, Clients* clients)
      : request_(std::move(request)), times_(times), clients_(clients) {
    ++clients_->active;
    started_ = SteadyClock::Get().Now();
    stub->async()->StreamGenerateText(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_delta()) {
      if (first_ == TimePoint{}) first_ = SteadyClock::Get().Now();
      clients_->tokens += response_.delta().token_ids_size();
    }
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) {
      if (++clients_->failed < 4) std::fprintf(stderr, "%s\n", status.error_message().c_str());
    } else if (clients_->measuring) {
      WorkerTimes at;
      {
        std::lock_guard lock(times_->mutex);
        at = times_->At(request_.generation().request_id());
      }
      std::lock_guard lock(clients_->mutex);
      clients_->submit_ms.push_back(1e3 * ToSeconds(at.submitted - started_));
      clients_->first_delta_ms.push_back(1e3 * ToSeconds(first_ - at.first_delta));
    }
    --clients_->active;
    ++clients_->ended;
    delete this;
  }

 private:
  v1::StreamGenerateTextRequest request_;
  TimeTable* const times_;
  Clients* const clients_;
  grpc::ClientContext context_;
  v1::StreamGenerateTextResponse response_;
  TimePoint started_{}, first_{};
};

double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(p * static_cast<double>(values.size() - 1))];
}

// Cumulative counts by upper bound (s) of the stages of paceline_router_overhead_seconds, and of
// paceline_router_request_overhead_seconds as "request".
using Buckets = std::map<double, double>;

std::map<std::string, Buckets> ReadStages(const std::string& page) {
  std::map<std::string, Buckets> stages;
  const std::string stage = "paceline_router_overhead_seconds_bucket{";
  const std::string request = "paceline_router_request_overhead_seconds_bucket{";
  for (const auto& line : absl::StrSplit(page, '\n')) {
    const std::string text(line);
    const bool whole = text.rfind(request, 0) == 0;
    if (!whole && text.rfind(stage, 0) != 0) continue;
    const auto value_of = [&](const std::string& label) {
      const size_t at = text.find(label + "=\"") + label.size() + 2;
      return text.substr(at, text.find('"', at) - at);
    };
    double bound = 1e9, count = 0;
    if (value_of("le") != "+Inf") CHECK(absl::SimpleAtod(value_of("le"), &bound));
    CHECK(absl::SimpleAtod(text.substr(text.rfind(' ') + 1), &count));
    stages[whole ? "request" : value_of("stage")][bound] = count;
  }
  return stages;
}

// In ms, linear inside a bucket.
double BucketPercentile(const Buckets& before, const Buckets& after, double p) {
  double total = 0;
  for (const auto& [bound, count] : after) {
    total = count - (before.contains(bound) ? before.at(bound) : 0);
  }
  double low = 0, below = 0;
  for (const auto& [bound, count] : after) {
    const double here = count - (before.contains(bound) ? before.at(bound) : 0);
    if (here >= p * total) {
      return 1e3 * (low + (bound - low) * (p * total - below) / std::max(1.0, here - below));
    }
    low = bound;
    below = here;
  }
  return 1e3 * low;
}

double CpuSeconds(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string stat((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::vector<std::string> fields = absl::StrSplit(stat.substr(stat.rfind(')') + 2), ' ');
  int64_t user = 0, system = 0;
  CHECK(absl::SimpleAtoi(fields[11], &user) && absl::SimpleAtoi(fields[12], &system));
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// About so many tokens of words that differ from request to request.
std::string NewPrompt(const Tokenizer& tokenizer, int32_t tokens, std::minstd_rand* random) {
  static const char* kWords[] = {"line", "rider", "wind", "road", "draft", "wheel", "pace", "hill"};
  std::string text;
  int32_t count = 0;
  while (count < tokens) {
    const std::string word = absl::StrCat(" ", kWords[(*random)() % 8]);
    text += word;
    const auto ids = tokenizer.Encode(word);
    CHECK(ids.ok()) << ids.status().ToString();
    count += static_cast<int32_t>(ids->size());
  }
  return text;
}

std::string Scrape(const std::string& metrics) {
  auto page = HttpGet(metrics, "/metrics", std::chrono::seconds(5));
  CHECK(page.ok()) << page.status().ToString();
  return *page;
}

void Report(const Settings& settings, const Clients& clients, std::map<std::string, Buckets> before,
            std::map<std::string, Buckets> after, int64_t tokens, double cpu, double wall) {
  std::printf(
      "%d streams at most, %.0f requests/s, %d-token prompts, %d workers, a delta per %d ms\n",
      settings.streams, settings.rate, settings.prompt_tokens, settings.workers, settings.step_ms);
  std::printf("%-44s %8s %8s\n", "the router's own time, ms", "p50", "p99");
  for (const char* stage : {"parse", "tokenize", "route", "forward", "request"}) {
    const double p50 = BucketPercentile(before[stage], after[stage], .5);
    const double p99 = BucketPercentile(before[stage], after[stage], .99);
    std::printf("  %-42s %8.3f %8.3f\n", stage, p50, p99);
  }
  std::printf("%-44s\n", "seen from outside, two gRPC hops each, ms");
  std::printf("  %-42s %8.3f %8.3f\n", "client's call to the worker's submit",
              Percentile(clients.submit_ms, .5), Percentile(clients.submit_ms, .99));
  std::printf("  %-42s %8.3f %8.3f\n", "worker's first delta to the client's read",
              Percentile(clients.first_delta_ms, .5), Percentile(clients.first_delta_ms, .99));
  std::printf("%.0f tokens/s, %.1f %% of a core, %.0f tokens per CPU-second of the router\n",
              static_cast<double>(tokens) / wall, 100 * cpu / wall,
              static_cast<double>(tokens) / cpu);
}

int Run(const Settings& settings) {
  auto tokenizer = Tokenizer::Load(settings.model);
  CHECK(tokenizer.ok()) << tokenizer.status().ToString();
  TimeTable times;
  std::vector<std::unique_ptr<FakeWorker>> workers;
  std::vector<std::string> addresses;
  for (int32_t i = 0; i < settings.workers; ++i) {
    workers.push_back(std::make_unique<FakeWorker>(settings, (*tokenizer)->vocab_size(), &times));
    addresses.push_back(workers.back()->address());
  }
  auto router = ChildProcess::Start({settings.router, "--workers=" + absl::StrJoin(addresses, ","),
                                     "--model=fake=" + settings.model, "--log-level=error"});
  CHECK(router.ok()) << router.status().ToString();
  const auto address = router->WaitForLine("router listening on ", std::chrono::seconds(10));
  CHECK(address.ok()) << address.status().ToString();
  const auto metrics = router->WaitForLine("metrics listening on ", std::chrono::seconds(10));
  CHECK(metrics.ok()) << metrics.status().ToString();

  Clients clients;
  auto stub = v1::InferenceService::NewStub(NewChannel(*address));
  // So long that the given rate keeps as many streams as given.
  const auto max_tokens =
      static_cast<int32_t>(1e3 * settings.streams / (settings.rate * settings.step_ms));
  std::minstd_rand random(1);
  std::exponential_distribution<double> gap(settings.rate);
  int64_t id = 0, tokens = 0;
  double cpu = 0;
  std::map<std::string, Buckets> before;
  const TimePoint start = SteadyClock::Get().Now();
  TimePoint measured = start, next = start;
  const TimePoint end = start + std::chrono::seconds(settings.warmup + settings.seconds);
  while (next < end) {
    std::this_thread::sleep_until(next);
    if (!clients.measuring && next - start >= std::chrono::seconds(settings.warmup)) {
      before = ReadStages(Scrape(*metrics));
      clients.measuring = true;
      tokens = clients.tokens;
      cpu = CpuSeconds(router->pid());
      measured = SteadyClock::Get().Now();
    }
    if (clients.active < settings.streams) {
      v1::StreamGenerateTextRequest request;
      auto* spec = request.mutable_generation();
      spec->set_request_id(absl::StrCat(++id));
      spec->set_text(NewPrompt(**tokenizer, settings.prompt_tokens, &random));
      spec->mutable_sampling()->set_max_tokens(max_tokens);
      spec->mutable_sampling()->set_ignore_eos(true);
      new ClientStream(stub.get(), std::move(request), &times, &clients);
    }
    next += Seconds(gap(random));
  }
  const double wall = ToSeconds(SteadyClock::Get().Now() - measured);
  cpu = CpuSeconds(router->pid()) - cpu;
  tokens = clients.tokens - tokens;
  clients.measuring = false;
  const auto after = ReadStages(Scrape(*metrics));
  while (clients.active > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  {
    std::lock_guard lock(clients.mutex);
    Report(settings, clients, before, after, tokens, cpu, wall);
  }
  router->Signal(SIGTERM);
  router->Join(std::chrono::seconds(10));
  if (clients.failed > 0)
    std::printf("%d of %d streams failed\n", clients.failed.load(), clients.ended.load());
  return clients.failed > 0 ? kExitFailure : 0;
}

int Main(int argc, char** argv) {
  Settings s;
  s.router = (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../../bin" /
              "paceline-router")
                 .lexically_normal()
                 .string();
  Flags flags("router_bench: the router's own time and CPU per token, before fake workers");
  flags.Add("router", &s.router, "path of paceline-router");
  flags.Add("model", &s.model, "HF directory whose tokenizer is used");
  flags.Add("workers", &s.workers, "fake workers");
  flags.Add("streams", &s.streams, "streams at once at most, and on average");
  flags.Add("rate", &s.rate, "requests per second (Poisson)");
  flags.Add("prompt-tokens", &s.prompt_tokens, "tokens of each prompt, about");
  flags.Add("step-ms", &s.step_ms, "time between two tokens of a stream");
  flags.Add("warmup", &s.warmup, "seconds before the measurement");
  flags.Add("seconds", &s.seconds, "seconds of the measurement");
  flags.ParseOrExit(argc, argv);
  return Run(s);
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }

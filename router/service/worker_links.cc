#include "router/service/worker_links.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/rpc/error.h"

namespace paceline {
namespace {

using worker::v1::WorkerService;

double UnixNow() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

absl::Status At(const std::string& address, const grpc::Status& status) {
  const absl::Status error = FromGrpcStatus(status);
  if (error.ok()) return error;
  return absl::Status(error.code(), absl::StrCat(address, ": ", std::string(error.message())));
}

// What several workers answer, until the last one has.
template <typename Answer>
struct Gathering {
  std::mutex mutex;
  Answer answer;
  size_t left = 0;
  std::function<void(Answer)> done;

  template <typename Note>
  void Take(Note note) {
    std::unique_lock lock(mutex);
    note(&answer);
    if (--left > 0) return;
    lock.unlock();
    done(std::move(answer));
  }
};

}  // namespace

void WorkerLinks::Alarm::Ring() {
  std::lock_guard lock(mutex);
  due = true;
  rung.notify_all();
}

class WorkerLinks::Port final : public WorkerPort {
 public:
  Port(WorkerLinks* links, std::shared_ptr<WorkerLink> link)
      : links_(links), link_(std::move(link)) {}
  ~Port() override { links_->LetGo(link_.get()); }
  void Submit(AttemptHandle handle, const GenerationRequest& request) override {
    link_->Submit(handle, request);
  }
  void Cancel(AttemptHandle handle) override { link_->Cancel(handle); }
  void Flush() override { link_->Flush(); }

 private:
  WorkerLinks* const links_;
  const std::shared_ptr<WorkerLink> link_;
};

WorkerLinks::WorkerLinks(RouterLoop* loop, std::unique_ptr<Discovery> targets,
                         std::unique_ptr<Discovery> drafts, WorkerLinksOptions options)
    : loop_(loop), targets_(std::move(targets)), drafts_(std::move(drafts)), options_(options) {
  List();
  loop_->Read([](const RouterCore&, TimePoint) {});  // the links are there
  ticker_ = std::thread([this] { RunTicks(); });
  lister_ = std::thread([this] { RunDiscovery(); });
}

WorkerLinks::~WorkerLinks() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    stop_.notify_all();
  }
  alarm_->Ring();
  ticker_.join();
  lister_.join();
  for (const Entry& entry : Entries()) entry.link->Close();
  std::unique_lock lock(mutex_);
  answered_.wait(lock, [this] { return asking_ == 0; });
}

// ---- Which workers there are ----

void WorkerLinks::List() {
  auto targets = targets_->List();
  if (targets.ok()) {
    last_listed_ = UnixNow();
    loop_->Relist(*std::move(targets), [this](WorkerId worker, const WorkerAddress& address) {
      return std::make_shared<Port>(this, Add(address.address, worker));
    });
  } else {
    spdlog::warn("targets not listed cause=\"{}\"", targets.status().ToString());
  }
  if (drafts_ == nullptr) return;
  const auto drafts = drafts_->List();
  if (drafts.ok()) return ListDrafts(*drafts);
  spdlog::warn("draft workers not listed cause=\"{}\"", drafts.status().ToString());
}

void WorkerLinks::ListDrafts(const std::vector<WorkerAddress>& addresses) {
  std::vector<std::string> added;
  {
    std::lock_guard lock(mutex_);
    const auto named = [&](const Entry& entry) {
      return std::find(addresses.begin(), addresses.end(), WorkerAddress{entry.link->address()}) !=
             addresses.end();
    };
    for (Entry& entry : entries_) {
      if (entry.worker == kNoWorker) entry.left = !named(entry);
    }
    for (const WorkerAddress& a : addresses) {
      const bool known = std::any_of(entries_.begin(), entries_.end(), [&](const Entry& e) {
        return e.worker == kNoWorker && e.link->address() == a.address;
      });
      if (!known) added.push_back(a.address);
    }
  }
  for (const std::string& address : added) Add(address, kNoWorker);
}

std::shared_ptr<WorkerLink> WorkerLinks::Add(const std::string& address, WorkerId worker) {
  auto link = std::make_shared<WorkerLink>(
      address, worker == kNoWorker ? nullptr : loop_, worker, [alarm = alarm_] { alarm->Ring(); },
      options_.link);
  {
    std::lock_guard lock(mutex_);
    entries_.push_back({link, worker, false});
  }
  alarm_->Ring();
  return link;
}

void WorkerLinks::LetGo(const WorkerLink* link) {
  {
    std::lock_guard lock(mutex_);
    for (Entry& entry : entries_) entry.left = entry.left || entry.link.get() == link;
  }
  alarm_->Ring();
}

void WorkerLinks::RunDiscovery() {
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, options_.relist_interval, [this] { return stopped_.load(); })) {
    lock.unlock();
    List();
    lock.lock();
  }
}

// ---- Time ----

void WorkerLinks::RunTicks() {
  while (!stopped_) {
    CloseLeft();
    TimePoint next = kNoDeadline;
    for (const Entry& entry : Entries()) {
      next = std::min(next, entry.link->Tick(SteadyClock::Get().Now()));
    }
    std::unique_lock lock(alarm_->mutex);
    const auto due = [this] { return alarm_->due; };
    if (next == kNoDeadline) {
      alarm_->rung.wait(lock, due);
    } else {
      alarm_->rung.wait_until(lock, next, due);
    }
    alarm_->due = false;
  }
}

void WorkerLinks::CloseLeft() {
  std::vector<std::shared_ptr<WorkerLink>> left;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry& entry) {
      if (entry.left) left.push_back(entry.link);
      return entry.left;
    });
  }
  for (const auto& link : left) link->Close();
}

bool WorkerLinks::AwaitTried(Duration limit) {
  const TimePoint end = SteadyClock::Get().Now() + limit;
  while (true) {
    const auto entries = Entries();
    if (std::all_of(entries.begin(), entries.end(), [](const Entry& e) { return e.link->tried(); }))
      return true;
    if (SteadyClock::Get().Now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// ---- What the API asks ----

std::vector<WorkerLinks::Entry> WorkerLinks::Entries() const {
  std::lock_guard lock(mutex_);
  return entries_;
}

std::vector<ClusterDirectory::Member> WorkerLinks::Members() const {
  const TimePoint now = SteadyClock::Get().Now();
  std::vector<Member> members;
  for (const Entry& entry : Entries()) {
    if (!entry.left) members.push_back(entry.link->Member(now));
  }
  std::sort(members.begin(), members.end(), [](const Member& a, const Member& b) {
    return std::make_tuple(a.role != "target", std::cref(a.address)) <
           std::make_tuple(b.role != "target", std::cref(b.address));
  });
  return members;
}

std::vector<WorkerLinks::Entry> WorkerLinks::ReachedTargets() const {
  const TimePoint now = SteadyClock::Get().Now();
  auto entries = Entries();
  std::erase_if(entries, [&](const Entry& entry) {
    return entry.worker == kNoWorker || entry.left || !entry.link->Member(now).reached;
  });
  return entries;
}

// `start` begins the call, `done` gets its status and the response.
template <typename Request, typename Response, typename Start, typename Done>
void WorkerLinks::Ask(std::shared_ptr<WorkerLink> link, Request request, Duration limit,
                      Start start, Done done) {
  struct Call {
    std::shared_ptr<WorkerLink> link;
    grpc::ClientContext context;
    Request request;
    Response response;
  };
  auto call = std::make_shared<Call>();
  call->link = std::move(link);
  call->request = std::move(request);
  call->context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(limit));
  {
    std::lock_guard lock(mutex_);
    ++asking_;
  }
  start(call->link->stub()->async(), &call->context, &call->request, &call->response,
        [this, call, done = std::move(done)](const grpc::Status& status) {
          done(At(call->link->address(), status), std::move(call->response));
          std::lock_guard lock(mutex_);
          --asking_;
          answered_.notify_all();
        });
}

void WorkerLinks::ListSessions(Duration limit, std::function<void(std::vector<SessionsAt>)> done) {
  const auto targets = ReachedTargets();
  if (targets.empty()) return done({});
  auto all = std::make_shared<Gathering<std::vector<SessionsAt>>>();
  all->left = targets.size();
  all->done = std::move(done);
  for (const Entry& target : targets) {
    Ask<worker::v1::ListSessionsRequest, worker::v1::ListSessionsResponse>(
        target.link, {}, limit,
        [](auto* stub, auto* context, auto* request, auto* response, auto end) {
          stub->ListSessions(context, request, response, std::move(end));
        },
        [all, address = target.link->address()](const absl::Status& status,
                                                worker::v1::ListSessionsResponse response) {
          SessionsAt at{address, status, {}};
          if (status.ok()) {
            at.sessions.assign(response.sessions().begin(), response.sessions().end());
          }
          all->Take([&](auto* answers) { answers->push_back(std::move(at)); });
        });
  }
}

void WorkerLinks::DeleteSession(const std::string& session_id, Duration limit,
                                std::function<void(absl::Status)> done) {
  const auto targets = ReachedTargets();
  if (targets.empty()) return done(absl::OkStatus());
  auto all = std::make_shared<Gathering<absl::Status>>();
  all->left = targets.size();
  all->done = std::move(done);
  worker::v1::DeleteSessionRequest request;
  request.set_session_id(session_id);
  for (const Entry& target : targets) {
    Ask<worker::v1::DeleteSessionRequest, worker::v1::DeleteSessionResponse>(
        target.link, request, limit,
        [](auto* stub, auto* context, auto* ask, auto* response, auto end) {
          stub->DeleteSession(context, ask, response, std::move(end));
        },
        [all](const absl::Status& status, const auto&) {
          all->Take([&](absl::Status* first) { first->Update(status); });
        });
  }
}

void WorkerLinks::DrainWorker(const std::string& address, Duration limit,
                              std::function<void(absl::Status)> done) {
  const auto entries = Entries();
  const auto entry = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) {
    return !e.left && e.link->address() == address;
  });
  if (entry == entries.end()) {
    return done(absl::NotFoundError(absl::StrCat("no worker has the address ", address)));
  }
  if (entry->worker != kNoWorker) {
    loop_->Post([worker = entry->worker](RouterCore& core, TimePoint now) {
      core.SetWorkerDrain(worker, true, now);
    });
  }
  Ask<worker::v1::DrainRequest, worker::v1::DrainResponse>(
      entry->link, {}, limit,
      [](auto* stub, auto* context, auto* request, auto* response, auto end) {
        stub->Drain(context, request, response, std::move(end));
      },
      [done = std::move(done)](const absl::Status& status, const auto&) { done(status); });
}

}  // namespace paceline

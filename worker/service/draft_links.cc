#include "worker/service/draft_links.h"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace paceline {
namespace {

std::string Numeric(const addrinfo& info) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(info.ai_addr, info.ai_addrlen, host, sizeof(host), port, sizeof(port),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "";
  }
  return info.ai_family == AF_INET6 ? absl::StrCat("[", host, "]:", port)
                                    : absl::StrCat(host, ":", port);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ResolveAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host.empty() || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is no host:port"));
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat(address, ": ", gai_strerror(error)));
  }
  std::set<std::string> names;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    names.insert(Numeric(*info));
  }
  freeaddrinfo(found);
  names.erase("");
  return std::vector<std::string>(names.begin(), names.end());
}

DraftLinks::DraftLinks(std::vector<std::string> addresses, draft::v1::Hello hello,
                       DraftSpeculator* speculator, GrpcDraftLink::RoundTrip round_trip,
                       DraftLinksOptions options)
    : addresses_(std::move(addresses)),
      hello_(std::move(hello)),
      speculator_(speculator),
      round_trip_(std::move(round_trip)),
      options_(options) {
  if (addresses_.empty()) return;
  resolver_ = std::thread([this] { RunResolver(); });
  ticker_ = std::thread([this] { RunTicks(); });
}

DraftLinks::~DraftLinks() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    stop_.notify_all();
  }
  if (resolver_.joinable()) resolver_.join();
  if (ticker_.joinable()) ticker_.join();
  for (auto& [name, link] : links_) {
    speculator_->RemoveLink(link.id);
    link.link->Close();
  }
}

std::vector<DraftLinks::LinkState> DraftLinks::States() const {
  std::lock_guard lock(mutex_);
  std::vector<LinkState> states;
  for (const auto& [name, link] : links_) {
    states.push_back({name, link.link->status().state, link.link->last_error()});
  }
  return states;
}

std::shared_ptr<GrpcDraftLink> DraftLinks::Add(const std::string& name, DraftLinkId* id) {
  // The id is known only once the link exists; it is set before the first tick, hence before the
  // first frame.
  auto known = std::make_shared<std::atomic<DraftLinkId>>(0);
  auto deliver = [this, known](uint64_t incarnation, DraftFrame frame) {
    speculator_->mailbox().Deliver(*known, incarnation, std::move(frame));
  };
  auto link =
      std::make_shared<GrpcDraftLink>(name, hello_, std::move(deliver), round_trip_, options_.link);
  *known = *id = speculator_->AddLink(link);
  return link;
}

void DraftLinks::Adopt(const std::vector<std::string>& names) {
  const std::set<std::string> wanted(names.begin(), names.end());
  std::vector<Link> gone;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(links_, [&](const auto& entry) {
      if (wanted.contains(entry.first)) return false;
      gone.push_back(entry.second);
      return true;
    });
    for (const std::string& name : wanted) {
      if (links_.contains(name)) continue;
      Link link;
      link.link = Add(name, &link.id);
      spdlog::info("draft worker listed address={}", name);
      links_.emplace(name, std::move(link));
    }
  }
  for (const Link& link : gone) {
    spdlog::info("draft worker no longer listed address={}", link.link->name());
    speculator_->RemoveLink(link.id);
    link.link->Close();
  }
}

void DraftLinks::RunResolver() {
  std::map<std::string, std::vector<std::string>> last;  // what each address stood for
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    lock.unlock();
    std::vector<std::string> names;
    for (const std::string& address : addresses_) {
      // Name servers fail; drafters stay.
      if (auto found = ResolveAddress(address); found.ok()) {
        last[address] = *std::move(found);
      } else {
        spdlog::warn("draft worker not resolved cause=\"{}\"", found.status().ToString());
      }
      names.insert(names.end(), last[address].begin(), last[address].end());
    }
    Adopt(names);
    lock.lock();
    stop_.wait_for(lock, options_.resolve_interval, [this] { return stopped_; });
  }
}

void DraftLinks::RunTicks() {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    std::vector<std::shared_ptr<GrpcDraftLink>> links;
    for (const auto& [name, link] : links_) links.push_back(link.link);
    lock.unlock();
    const TimePoint now = SteadyClock::Get().Now();
    for (const auto& link : links) link->Tick(now);
    links.clear();
    lock.lock();
    stop_.wait_for(lock, options_.tick, [this] { return stopped_; });
  }
}

}  // namespace paceline

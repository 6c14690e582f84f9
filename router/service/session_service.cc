#include "router/service/session_service.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/rpc/duration.h"
#include "common/types/session_id.h"
#include "router/service/generation_parser.h"
#include "router/service/paging.h"
#include "router/service/random_id.h"

namespace paceline {
namespace {

using SessionsAt = ClusterDirectory::SessionsAt;

struct Answers {
  std::map<std::string, v1::Session> sessions;
  size_t answered = 0;
  std::optional<ServingError> missing;  // why the first worker that did not answer did not
};

ServingError NotAsked(const std::string& address, const absl::Status& status) {
  ServingError error = ServingError::NoWorker("");
  error.message =
      absl::StrCat("the worker ", address, " could not be asked: ", std::string(status.message()));
  error.metadata = {{"worker", address}};
  return error;
}

void AddBlocks(const std::string& address, const worker::v1::SessionBlocks& blocks,
               v1::Session* session) {
  session->set_session_id(blocks.session_id());
  session->set_block_count(session->block_count() + blocks.blocks());
  session->add_workers(address);
  const auto left = FromProto(blocks.time_left());
  const auto longest = FromProto(session->time_to_live());
  if (left.ok() && longest.ok() && *left > *longest) {
    *session->mutable_time_to_live() = blocks.time_left();
  }
}

Answers Gather(const std::vector<SessionsAt>& list) {
  Answers answers;
  for (const SessionsAt& at : list) {
    if (!at.error.ok()) {
      if (!answers.missing) answers.missing = NotAsked(at.address, at.error);
      continue;
    }
    ++answers.answered;
    for (const auto& blocks : at.sessions) {
      AddBlocks(at.address, blocks, &answers.sessions[blocks.session_id()]);
    }
  }
  return answers;
}

std::optional<ServingError> CheckId(const std::string& id) {
  if (!id.empty() && id.size() <= kMaxIdBytes) return std::nullopt;
  return ServingError::InvalidField(
      "session_id", absl::StrCat("it has ", id.size(), " bytes; it must have 1 to ", kMaxIdBytes));
}

std::optional<ServingError> CheckTimeToLive(const v1::CreateSessionRequest& request) {
  if (!request.has_time_to_live()) return std::nullopt;
  const auto ttl = FromProto(request.time_to_live());
  if (ttl.ok() && *ttl >= kShortestSession && *ttl <= kLongestSession) return std::nullopt;
  return ServingError::InvalidField("time_to_live", "it must be in [1 s, 24 h]");
}

// The id carries the time, in whole seconds; what is asked for is kept at least.
void FillSession(const v1::CreateSessionRequest& request, v1::Session* session) {
  if (!request.has_time_to_live()) return session->set_session_id(RandomId());
  const auto ttl = std::chrono::ceil<std::chrono::seconds>(*FromProto(request.time_to_live()));
  session->set_session_id(MakeSessionId(RandomId(), ttl));
  session->mutable_time_to_live()->set_seconds(ttl.count());
}

}  // namespace

grpc::ServerUnaryReactor* SessionServiceImpl::CreateSession(grpc::CallbackServerContext* context,
                                                            const v1::CreateSessionRequest* request,
                                                            v1::CreateSessionResponse* response) {
  UnaryEnd end(&api_, context, "CreateSession");
  if (auto error = CheckTimeToLive(*request)) {
    end.Fail(*error);
    return end.reactor();
  }
  FillSession(*request, response->mutable_session());
  end.Finish(grpc::Status::OK);
  return end.reactor();
}

grpc::ServerUnaryReactor* SessionServiceImpl::GetSession(grpc::CallbackServerContext* context,
                                                         const v1::GetSessionRequest* request,
                                                         v1::GetSessionResponse* response) {
  UnaryEnd end(&api_, context, "GetSession");
  if (auto error = CheckId(request->session_id())) {
    end.Fail(*error);
    return end.reactor();
  }
  api_.directory->ListSessions(
      api_.options.ask_limit, [end, request, response](const std::vector<SessionsAt>& list) {
        Answers answers = Gather(list);
        const auto found = answers.sessions.find(request->session_id());
        if (found != answers.sessions.end()) {
          *response->mutable_session() = std::move(found->second);
          return end.Finish(grpc::Status::OK);
        }
        // A worker that did not answer may hold it.
        end.Fail(answers.missing ? *answers.missing
                                 : ServingError::SessionNotFound(request->session_id()));
      });
  return end.reactor();
}

grpc::ServerUnaryReactor* SessionServiceImpl::ListSessions(grpc::CallbackServerContext* context,
                                                           const v1::ListSessionsRequest* request,
                                                           v1::ListSessionsResponse* response) {
  UnaryEnd end(&api_, context, "ListSessions");
  Page page;
  if (auto error = ParsePage(request->page_size(), request->page_token(), &page)) {
    end.Fail(*error);
    return end.reactor();
  }
  api_.directory->ListSessions(api_.options.ask_limit, [end, page, response](
                                                           const std::vector<SessionsAt>& list) {
    Answers answers = Gather(list);
    if (answers.missing && answers.answered == 0) return end.Fail(*answers.missing);
    auto next = answers.sessions.upper_bound(page.after);
    for (; next != answers.sessions.end() && response->sessions_size() < page.size; ++next) {
      *response->add_sessions() = std::move(next->second);
    }
    if (next != answers.sessions.end()) {
      response->set_next_page_token(PageTokenAfter(response->sessions(page.size - 1).session_id()));
    }
    end.Finish(grpc::Status::OK);
  });
  return end.reactor();
}

grpc::ServerUnaryReactor* SessionServiceImpl::DeleteSession(grpc::CallbackServerContext* context,
                                                            const v1::DeleteSessionRequest* request,
                                                            v1::DeleteSessionResponse*) {
  UnaryEnd end(&api_, context, "DeleteSession");
  if (auto error = CheckId(request->session_id())) {
    end.Fail(*error);
    return end.reactor();
  }
  api_.directory->DeleteSession(
      request->session_id(), api_.options.ask_limit, [end](const absl::Status& status) {
        if (status.ok()) return end.Finish(grpc::Status::OK);
        ServingError error = ServingError::NoWorker("");
        error.message = absl::StrCat("not every worker has dropped the session: ",
                                     std::string(status.message()));
        error.metadata.clear();
        end.Fail(error);
      });
  return end.reactor();
}

}  // namespace paceline

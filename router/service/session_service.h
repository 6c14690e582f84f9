// paceline.v1.SessionService: ids are made here and kept nowhere; what is known of a session is
// what workers say of its blocks.
#pragma once

#include "paceline/v1/session.grpc.pb.h"
#include "router/service/api_context.h"

namespace paceline {

class SessionServiceImpl final : public v1::SessionService::CallbackService {
 public:
  // As InferenceServiceImpl.
  explicit SessionServiceImpl(const ApiContext& api) : api_(api) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const v1::CreateSessionRequest* request,
                                          v1::CreateSessionResponse* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override;

 private:
  const ApiContext api_;
};

}  // namespace paceline

// paceline.v1.ClusterService: what the router knows of itself and of its workers, and drain.
#pragma once

#include "paceline/v1/cluster.grpc.pb.h"
#include "router/service/api_context.h"

namespace paceline {

class ClusterServiceImpl final : public v1::ClusterService::CallbackService {
 public:
  // As InferenceServiceImpl.
  explicit ClusterServiceImpl(const ApiContext& api) : api_(api) {}

  grpc::ServerUnaryReactor* GetClusterStatus(grpc::CallbackServerContext* context,
                                             const v1::GetClusterStatusRequest* request,
                                             v1::GetClusterStatusResponse* response) override;
  grpc::ServerUnaryReactor* DrainWorker(grpc::CallbackServerContext* context,
                                        const v1::DrainWorkerRequest* request,
                                        v1::DrainWorkerResponse* response) override;

 private:
  const ApiContext api_;
};

}  // namespace paceline

// paceline.v1.InferenceService over the router's loop.
#pragma once

#include "paceline/v1/inference.grpc.pb.h"
#include "router/service/api_context.h"

namespace paceline {

class InferenceServiceImpl final : public v1::InferenceService::CallbackService {
 public:
  // Everything in `api` outlives the server. The loop stops after the server has shut down, the
  // text executor after that.
  explicit InferenceServiceImpl(const ApiContext& api) : api_(api) {
    if (api_.tokenizers == nullptr) api_.tokenizers = &tokenizers_;
  }

  grpc::ServerUnaryReactor* GenerateText(grpc::CallbackServerContext* context,
                                         const v1::GenerateTextRequest* request,
                                         v1::GenerateTextResponse* response) override;
  grpc::ServerWriteReactor<v1::StreamGenerateTextResponse>* StreamGenerateText(
      grpc::CallbackServerContext* context, const v1::StreamGenerateTextRequest* request) override;
  grpc::ServerWriteReactor<v1::ResumeGenerateTextResponse>* ResumeGenerateText(
      grpc::CallbackServerContext* context, const v1::ResumeGenerateTextRequest* request) override;
  grpc::ServerUnaryReactor* TokenizeText(grpc::CallbackServerContext* context,
                                         const v1::TokenizeTextRequest* request,
                                         v1::TokenizeTextResponse* response) override;
  grpc::ServerUnaryReactor* DetokenizeTokens(grpc::CallbackServerContext* context,
                                             const v1::DetokenizeTokensRequest* request,
                                             v1::DetokenizeTokensResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

 private:
  ApiContext api_;
  TokenizerWatch tokenizers_;
};

}  // namespace paceline

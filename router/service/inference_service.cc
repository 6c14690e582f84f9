#include "router/service/inference_service.h"

#include <utility>

#include "router/service/generation_parser.h"
#include "router/service/generation_reactors.h"
#include "router/service/paging.h"

namespace paceline {
namespace {

void ToProto(const ServedModel& model, v1::Model* proto) {
  proto->set_name(model.name);
  proto->set_context_length(model.context_length);
  proto->set_vocabulary_size(model.vocab_size);
  for (const std::string& f : model.tokenizer_fingerprints) {
    if (proto->tokenizer_fingerprint().empty()) proto->set_tokenizer_fingerprint(f);
  }
  proto->set_ready_worker_count(model.ready_workers);
  for (const std::string& f : model.numerics_fingerprints) proto->add_numerics_fingerprints(f);
}

// Runs `task` where an input of so many bytes belongs; it gives the error or nothing.
void RunTextTask(const ApiContext& api, size_t bytes, UnaryEnd end,
                 std::function<std::optional<ServingError>()> task) {
  const bool taken = api.text->Run(bytes, [end, task = std::move(task)] {
    if (auto error = task()) return end.Fail(*error);
    end.Finish(grpc::Status::OK);
  });
  if (taken) return;
  end.Fail(ServingError::QueueFull(api.text->waiting(), api.text->options().max_queue,
                                   "--max-text-queue"));
}

}  // namespace

grpc::ServerUnaryReactor* InferenceServiceImpl::GenerateText(grpc::CallbackServerContext* context,
                                                             const v1::GenerateTextRequest* request,
                                                             v1::GenerateTextResponse* response) {
  return NewUnaryReactor(&api_, context, request, response);
}

grpc::ServerWriteReactor<v1::StreamGenerateTextResponse>* InferenceServiceImpl::StreamGenerateText(
    grpc::CallbackServerContext* context, const v1::StreamGenerateTextRequest* request) {
  return NewStreamReactor(&api_, context, request);
}

grpc::ServerWriteReactor<v1::ResumeGenerateTextResponse>* InferenceServiceImpl::ResumeGenerateText(
    grpc::CallbackServerContext* context, const v1::ResumeGenerateTextRequest* request) {
  return NewResumeReactor(&api_, context, request);
}

grpc::ServerUnaryReactor* InferenceServiceImpl::TokenizeText(grpc::CallbackServerContext* context,
                                                             const v1::TokenizeTextRequest* request,
                                                             v1::TokenizeTextResponse* response) {
  UnaryEnd end(&api_, context, "TokenizeText");
  ServedModel model;
  if (auto error = ResolveModel(request->model(), FindServedModels(api_.directory->Members()),
                                *api_.catalog, "model", &model)) {
    end.Fail(*error);
    return end.reactor();
  }
  if (model.reached_workers > 0) end.SetModel(model.name);
  RunTextTask(api_, request->text().size(), end, [this, request, response, model] {
    std::vector<TokenId> tokens;
    auto error = EncodeText(request->text(), model, api_.catalog->Find(model.name),
                            !request->has_add_special_tokens() || request->add_special_tokens(),
                            "text", &tokens);
    response->mutable_token_ids()->Add(tokens.begin(), tokens.end());
    return error;
  });
  return end.reactor();
}

grpc::ServerUnaryReactor* InferenceServiceImpl::DetokenizeTokens(
    grpc::CallbackServerContext* context, const v1::DetokenizeTokensRequest* request,
    v1::DetokenizeTokensResponse* response) {
  UnaryEnd end(&api_, context, "DetokenizeTokens");
  ServedModel model;
  if (auto error = ResolveModel(request->model(), FindServedModels(api_.directory->Members()),
                                *api_.catalog, "model", &model)) {
    end.Fail(*error);
    return end.reactor();
  }
  if (model.reached_workers > 0) end.SetModel(model.name);
  const size_t bytes = 4 * static_cast<size_t>(request->token_ids_size());
  RunTextTask(api_, bytes, end, [this, request, response, model]() -> std::optional<ServingError> {
    const ModelText* text = api_.catalog->Find(model.name);
    if (auto error = CheckTokenizer(model, text, "model")) return error;
    const std::span<const int32_t> ids(request->token_ids().data(), request->token_ids_size());
    const int32_t vocab_size =
        model.vocab_size > 0 ? model.vocab_size : text->tokenizer->vocab_size();
    if (auto error = CheckTokenIds(ids, vocab_size, "token_ids")) return error;
    response->set_text(text->tokenizer->Decode(ids, request->skip_special_tokens()));
    return std::nullopt;
  });
  return end.reactor();
}

grpc::ServerUnaryReactor* InferenceServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                           const v1::ListModelsRequest* request,
                                                           v1::ListModelsResponse* response) {
  UnaryEnd end(&api_, context, "ListModels");
  Page page;
  if (auto error = ParsePage(request->page_size(), request->page_token(), &page)) {
    end.Fail(*error);
    return end.reactor();
  }
  for (const ServedModel& model : FindServedModels(api_.directory->Members()).models) {
    if (model.reached_workers == 0 || model.name <= page.after) continue;
    if (response->models_size() == page.size) {
      response->set_next_page_token(PageTokenAfter(response->models(page.size - 1).name()));
      break;
    }
    ToProto(model, response->add_models());
  }
  end.Finish(grpc::Status::OK);
  return end.reactor();
}

grpc::ServerUnaryReactor* InferenceServiceImpl::GetModel(grpc::CallbackServerContext* context,
                                                         const v1::GetModelRequest* request,
                                                         v1::GetModelResponse* response) {
  UnaryEnd end(&api_, context, "GetModel");
  if (request->name().empty()) {
    end.Fail(ServingError::InvalidField("name", "it is required"));
    return end.reactor();
  }
  for (const ServedModel& model : FindServedModels(api_.directory->Members()).models) {
    if (model.name == request->name() && model.reached_workers > 0) {
      end.SetModel(model.name);
      ToProto(model, response->mutable_model());
    }
  }
  if (response->has_model()) {
    end.Finish(grpc::Status::OK);
  } else {
    end.Fail(ServingError::ModelNotFound(request->name()));
  }
  return end.reactor();
}

}  // namespace paceline

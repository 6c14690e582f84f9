#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <functional>

namespace paceline::kernels {
namespace {

int32_t CeilDivide(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Keys that each row sees, and for a tree its mask: the row, its ancestors, the window.
void AddRows(const AttentionSpanInput& input, int32_t window, CudaAttentionSpan* span,
             AttentionPlan* plan) {
  if (input.parents == nullptr) {
    for (int32_t r = 0; r < input.num_rows; ++r) plan->visible.push_back(input.context_len + r + 1);
    return;
  }
  const size_t first = plan->visible.size();
  span->mask_begin = static_cast<int32_t>(plan->masks.size());
  span->mask_words = CeilDivide(input.num_rows, 32);
  plan->masks.resize(plan->masks.size() + static_cast<size_t>(input.num_rows * span->mask_words),
                     0);
  for (int32_t r = 0; r < input.num_rows; ++r) {
    const int32_t parent = input.parents[r];
    plan->visible.push_back(parent < 0 ? input.context_len + 1
                                       : plan->visible[first + static_cast<size_t>(parent)] + 1);
    const int32_t visible = plan->visible.back();
    uint32_t* words = plan->masks.data() + span->mask_begin + r * span->mask_words;
    for (int32_t at = r; at >= 0; at = input.parents[at]) {
      const int32_t ordinal = plan->visible[first + static_cast<size_t>(at)] - 1;
      if (window > 0 && ordinal < visible - window) break;
      words[at / 32] |= 1u << (at % 32);
    }
  }
}

void AddItems(const AttentionSpanInput& input, const CudaAttentionSpan& span,
              const AttentionPlanOptions& options, AttentionPlan* plan) {
  const auto index = static_cast<int32_t>(plan->spans.size()) - 1;
  const int32_t group = options.num_heads / options.kv_heads;
  const int32_t queries = input.num_rows * group;
  // Decode rows are small items, drafts medium ones: one item, whose chunks are split.
  const bool small = queries <= kAttentionUnit;
  const bool large = queries > kMediumItemQueries;
  const int32_t size = large ? LargeItemQueries(options.head_dim) : queries;
  std::vector<CudaAttentionItem>& items = small   ? plan->small_items
                                          : large ? plan->large_items
                                                  : plan->medium_items;
  const int32_t units = CeilDivide(size, kAttentionUnit);
  for (int32_t begin = 0; begin < queries; begin += size) {
    const int32_t first_row = begin / group;
    const int32_t last_row = (std::min(begin + size, queries) - 1) / group;
    const bool tree = input.parents != nullptr;
    const int32_t kv_end = input.context_len + (tree ? input.num_rows : last_row + 1);
    int32_t first_key = 0;
    if (options.window > 0) {
      // A tree's rows may see less than their index says; of the context they see the same.
      const int32_t least = tree ? input.context_len + 1 : input.context_len + first_row + 1;
      first_key = std::min(std::max(0, least - options.window), input.context_len);
    }
    CudaAttentionItem item{.span = index,
                           .query_begin = begin,
                           .chunk_begin = first_key / kCudaAttentionChunk,
                           .chunk_end = CeilDivide(kv_end, kCudaAttentionChunk)};
    const int32_t chunks = item.chunk_end - item.chunk_begin;
    if (chunks == 1 || large || plan->num_units + chunks * units > options.max_units) {
      items.push_back(item);
      continue;
    }
    for (int32_t unit = 0; unit < units; ++unit) {
      plan->splits.push_back({.span = index,
                              .query_begin = begin + unit * kAttentionUnit,
                              .num_chunks = chunks,
                              .partial = plan->num_units + unit,
                              .stride = units});
    }
    for (int32_t c = item.chunk_begin; c < item.chunk_begin + chunks; ++c) {
      items.push_back({.span = index,
                       .query_begin = begin,
                       .chunk_begin = c,
                       .chunk_end = c + 1,
                       .partial = plan->num_units});
      plan->num_units += units;
    }
  }
}

}  // namespace

void AttentionPlan::Clear() {
  spans.clear();
  visible.clear();
  masks.clear();
  small_items.clear();
  medium_items.clear();
  large_items.clear();
  splits.clear();
  num_units = 0;
}

void PlanAttention(const std::vector<AttentionSpanInput>& inputs,
                   const AttentionPlanOptions& options, AttentionPlan* plan) {
  for (const AttentionSpanInput& input : inputs) {
    CudaAttentionSpan span{.table_begin = input.table_begin,
                           .context_len = input.context_len,
                           .row_begin = input.row_begin,
                           .num_rows = input.num_rows};
    AddRows(input, options.window, &span, plan);
    plan->spans.push_back(span);
    if (input.num_rows > 0) AddItems(input, plan->spans.back(), options, plan);
  }
  // The longest first: short ones fill the gaps at the end.
  std::ranges::stable_sort(plan->large_items, std::greater(), [](const CudaAttentionItem& item) {
    return item.chunk_end - item.chunk_begin;
  });
}

}  // namespace paceline::kernels

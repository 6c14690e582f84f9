#include "kernels/cpu/attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/isa_kernels.h"

namespace paceline::kernels {
namespace {

int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

bool Valid(const AttentionParams& p) {
  const KvShape& kv = p.kv;
  if (p.num_spans < 0 || kv.kv_heads <= 0 || kv.head_dim <= 0 || p.num_heads <= 0 ||
      p.num_heads % kv.kv_heads != 0 || p.window < 0) {
    return false;
  }
  for (int32_t s = 0; s < p.num_spans; ++s) {
    const AttentionSpan& span = p.spans[s];
    if (span.num_rows < 0 || span.context_len < 0 || span.row_begin < 0) return false;
    if (span.num_rows > 0 && span.block_table == nullptr) return false;
    for (int32_t r = 0; span.parents != nullptr && r < span.num_rows; ++r) {
      if (span.parents[r] >= r) return false;
    }
  }
  const int64_t width = int64_t{p.num_heads} * kv.head_dim;
  return p.q_stride >= width && p.out_stride >= width && p.q != nullptr && p.out != nullptr &&
         p.k_cache != nullptr && p.v_cache != nullptr;
}

// Keys that row `row` sees.
int32_t VisibleCount(const AttentionSpan& span, int32_t row) {
  if (span.parents == nullptr) return span.context_len + row + 1;
  int32_t count = span.context_len + 1;
  for (int32_t r = span.parents[row]; r >= 0; r = span.parents[r]) ++count;
  return count;
}

// Every (row block, kv head, block of its query heads) of every span, all chunks in one task.
struct Plan {
  std::vector<AttentionTask> tasks;
  int64_t work = 0;        // keys x queries
  int32_t max_chunks = 0;  // of any task
};

void PlanTasks(const AttentionParams& p, Plan* plan) {
  plan->tasks.clear();
  plan->work = 0;
  plan->max_chunks = 0;
  const int32_t group = p.num_heads / p.kv.kv_heads;
  const int32_t heads = std::min(group, kMaxQueries);
  const int32_t rows = kMaxQueries / heads;
  for (int32_t s = 0; s < p.num_spans; ++s) {
    const AttentionSpan& span = p.spans[s];
    for (int32_t row = 0; row < span.num_rows; row += rows) {
      AttentionTask task;
      task.params = &p;
      task.span = &span;
      task.row_begin = row;
      task.row_end = std::min(row + rows, span.num_rows);
      int32_t most = 0;
      int32_t least = INT32_MAX;
      for (int32_t r = row; r < task.row_end; ++r) {
        const int32_t visible = VisibleCount(span, r);
        most = std::max(most, visible);
        least = std::min(least, visible);
      }
      task.chunk_begin = p.window > 0 ? std::max(0, least - p.window) / kAttentionChunk : 0;
      task.chunk_end = CeilDiv(most, kAttentionChunk);
      plan->max_chunks = std::max(plan->max_chunks, task.chunk_end - task.chunk_begin);
      plan->work += int64_t{most} * (task.row_end - row) * p.num_heads;
      for (int32_t head = 0; head < p.num_heads; head += heads) {
        // A block of query heads never crosses a kv head.
        task.kv_head = head / group;
        task.head_begin = head;
        task.head_end = std::min({head + heads, (task.kv_head + 1) * group});
        plan->tasks.push_back(task);
        head = task.head_end - heads;
      }
    }
  }
}

// Few rows and long contexts: a task per chunk, then the chunks' results in order (Flash-Decoding).
void RunSplit(const AttentionParams& p, const Plan& plan, const IsaKernels& kernels,
              ThreadPool& pool) {
  struct Piece {
    int32_t task;
    int32_t chunk;
    int64_t partial;
  };
  static thread_local std::vector<Piece> pieces;
  static thread_local std::vector<float> partials;
  static thread_local std::vector<int64_t> first_partial;  // per task
  pieces.clear();
  first_partial.clear();
  const int64_t stride = p.kv.head_dim + 2;
  int64_t total = 0;
  for (size_t i = 0; i < plan.tasks.size(); ++i) {
    const AttentionTask& t = plan.tasks[i];
    first_partial.push_back(total);
    const int64_t queries = int64_t{t.row_end - t.row_begin} * (t.head_end - t.head_begin);
    for (int32_t c = t.chunk_begin; c < t.chunk_end; ++c) {
      pieces.push_back({static_cast<int32_t>(i), c, total});
      total += queries * stride;
    }
  }
  if (partials.size() < static_cast<size_t>(total)) partials.resize(static_cast<size_t>(total));
  // thread_local names mean another variable on another thread: hand the data over by pointer.
  float* const data = partials.data();
  const Piece* const piece = pieces.data();
  const int64_t* const first = first_partial.data();
  pool.ParallelFor(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    AttentionTask task = plan.tasks[static_cast<size_t>(piece[i].task)];
    task.chunk_begin = piece[i].chunk;
    task.chunk_end = piece[i].chunk + 1;
    task.partial = data + piece[i].partial;
    kernels.attention(task);
  });
  for (size_t i = 0; i < plan.tasks.size(); ++i) {
    const AttentionTask& t = plan.tasks[i];
    const int32_t heads = t.head_end - t.head_begin;
    const int32_t queries = (t.row_end - t.row_begin) * heads;
    for (int32_t q = 0; q < queries; ++q) {
      const int32_t row = t.row_begin + q / heads;
      const int32_t visible = VisibleCount(*t.span, row);
      const int32_t begin = p.window > 0 ? std::max(0, visible - p.window) / kAttentionChunk : 0;
      const float* partial =
          data + first[i] + (int64_t{begin - t.chunk_begin} * queries + q) * stride;
      kernels.combine(partial, queries * stride, CeilDiv(visible, kAttentionChunk) - begin,
                      p.kv.head_dim,
                      p.out + (t.span->row_begin + row) * p.out_stride +
                          int64_t{t.head_begin + q % heads} * p.kv.head_dim);
    }
  }
}

}  // namespace

CpuResult Attention(const AttentionParams& params, ThreadPool& pool) {
  AttentionParams p = params;
  if (p.q_stride == 0) p.q_stride = int64_t{p.num_heads} * p.kv.head_dim;
  if (p.out_stride == 0) p.out_stride = int64_t{p.num_heads} * p.kv.head_dim;
  if (p.num_spans == 0) return CpuResult::kOk;
  if (!Valid(p)) return CpuResult::kBadShape;
  if (p.kv.head_dim % 2 != 0 || p.kv.head_dim > kMaxHeadDim ||
      (p.kv.block_size != 16 && p.kv.block_size != 32 && p.kv.block_size != 64)) {
    return CpuResult::kUnsupported;
  }
  static thread_local Plan plan;
  PlanTasks(p, &plan);
  const IsaKernels& kernels = KernelsFor(pool.isa());
  const Plan& ready = plan;
  const int64_t tasks = static_cast<int64_t>(ready.tasks.size());
  constexpr int64_t kInlineWork = 1024;  // keys x queries: below it, waking a thread costs more
  if (pool.num_threads() > 1 && ready.max_chunks > 1 && tasks < 4 * pool.num_threads()) {
    RunSplit(p, ready, kernels, pool);
  } else if (ready.work < kInlineWork) {
    for (const AttentionTask& task : ready.tasks) kernels.attention(task);
  } else {
    pool.ParallelFor(tasks,
                     [&](int64_t i) { kernels.attention(ready.tasks[static_cast<size_t>(i)]); });
  }
  return CpuResult::kOk;
}

}  // namespace paceline::kernels

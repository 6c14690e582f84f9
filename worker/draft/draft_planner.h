// Plans the draft model's steps over all sessions with work, and digests their results. Rows are
// shared fairly among targets; within a target greater priority goes first, then who is expected to
// commit first. Catch-up of long gaps takes what drafts leave, and a part that they must leave.
// Engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/draft/draft_session.h"
#include "worker/draft/session_table.h"

namespace paceline {

class DraftPlanner {
 public:
  // All outlive the planner.
  DraftPlanner(const DraftEngineOptions& options, const RunnerInfo& info, DraftPool* pool,
               const DraftPace* pace, SessionTable* table, DraftEngineCounters* counters);

  // The next step; empty when nobody has work. Stands until the next call.
  const StepPlan& Plan(TimePoint now);
  // The plan's result: drafts are appended to their paths.
  void Digest(const StepResult& result);
  // Sessions of the plan digested last; a few of them twice.
  const std::vector<DraftSession*>& planned() const { return sessions_; }

 private:
  // What a path needs next: its rows at positions [begin, end).
  struct Work {
    int32_t begin = 0;
    int32_t end = 0;
    int32_t sampled = 0;   // the last rows of them
    bool appends = false;  // the token drawn is the path's next draft
    int32_t rows() const { return end - begin; }
  };
  struct Part {
    DraftSession* session = nullptr;
    DraftPath* path = nullptr;
    Work work;
  };
  struct Demand {
    DraftSession* session = nullptr;
    int32_t drafts = 0;
    int32_t catch_up = 0;
  };

  static Work WorkUpTo(const DraftPath& path, int32_t first, int32_t samples, bool appends);
  static bool IsShort(const Work& work);
  Work TrunkWork(const DraftSession& s) const;
  Work BranchWork(const DraftSession& s, const OutcomeBranch& branch) const;

  void ListDemands(TimePoint now);
  void PlanTarget(std::span<const Demand> demands, int32_t rows);
  int32_t PlanDrafts(DraftSession* s, int32_t rows);
  int32_t PlanPath(DraftSession* s, const OutcomeBranch* branch, Work work, int32_t rows);
  void ChooseOutcomes(DraftSession* s, TimePoint now);
  int32_t BeginBranches(DraftSession* s, int32_t rows);
  void StartPath(DraftSession* s, DraftPath* path);
  void AddSpan(DraftSession* s, const OutcomeBranch* branch, const Work& work);

  void DigestPart(const Part& part, const SlotResult& result);

  const DraftEngineOptions options_;
  const RunnerInfo info_;
  DraftPool* const pool_;
  const DraftPace* const pace_;
  SessionTable* const table_;
  DraftEngineCounters* const counters_;
  int32_t num_candidates_ = 0;

  StepPlan plan_;
  uint64_t next_step_ = 1;
  uint64_t turn_ = 0;        // calls of Plan
  std::vector<Part> parts_;  // [spans]
  std::vector<DraftSession*> sessions_;
  std::vector<Demand> demands_;
};

}  // namespace paceline

// What was explored, and what was found? The program: runs scenarios and prints one line each, and JSON.
//
// usage: explore [--long] [--json FILE] [--planted N] [--preemptions N] [SCENARIO...]
// Without scenarios all of them, after the litmus tests. Exit 1 when something was found that should not
// have been, or the other way round; 2 when it cannot run. Called by tests/explore/test_explore.py.

#include <cstdio>
#include <cstring>
#include <ctime>

#include "damage.hpp"
#include "deaths.hpp"
#include "litmus.hpp"
#include "living.hpp"
#include "segments_change.hpp"
#include "tables.hpp"

// Executions must repeat: the core's clocks stand still.
extern "C" int clock_gettime(clockid_t, struct timespec* now) noexcept {
  now->tv_sec = 1000;
  now->tv_nsec = 0;
  return 0;
}

namespace {

using namespace explore;

struct Request {
  bool longer = false;
  int preemptions = -2;
  const char* json = nullptr;
  std::vector<std::string> names;
};

bool run_litmus(const Litmus& litmus) {
  std::string results[2];
  Figures figures;
  for (const bool naive : {true, false}) {
    build_world({1});
    std::vector<Actor> actors;
    for (const auto& body : litmus.threads) actors.push_back({"T", body});
    Limits limits;
    limits.naive = naive;
    figures = engine.explore(
        actors,
        [] {
          for (auto& thread : seen_values) thread[0] = thread[1] = -1;
        },
        [] { engine.outcome(told()); }, limits);
    for (const std::string& outcome : figures.outcomes) results[naive ? 0 : 1] += outcome + ", ";
  }
  std::string allowed;
  for (const std::string& outcome : litmus.allowed) allowed += outcome + ", ";
  const bool good = results[0] == allowed && results[1] == allowed;
  std::printf("litmus %-18s %2zu outcomes %s\n", litmus.name, figures.outcomes.size(),
              good ? "as C++20 has them" : "WRONG");
  if (!good) {
    std::printf("  allowed %s\n  naive   %s\n  reduced %s\n", allowed.c_str(), results[0].c_str(),
                results[1].c_str());
  }
  return good;
}

// Of the processor: others on this machine do not make a scenario longer.
double seconds_now() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// False when the result is not the one that was expected.
bool run_scenario(const Scenario& scenario, const Request& request, FILE* json) {
  build_world(scenario.shape);
  scenario.prepare();
  Limits limits;
  limits.preemptions = request.preemptions > -2 ? request.preemptions
                       : request.longer         ? scenario.preemptions_long
                                                : scenario.preemptions_short;
  const double started = seconds_now();
  const Figures figures = engine.explore(scenario.actors, refresh_world, scenario.judge, limits);
  const double seconds = seconds_now() - started;
  const bool found = !figures.violation.empty();
  const bool good = found == (scenario.must_fail != nullptr) && !figures.cut;
  std::string bound = figures.cut              ? "CUT"
                      : limits.preemptions < 0 ? "none"
                                               : std::to_string(limits.preemptions) + " preempt";
  const char* result = found ? (scenario.must_fail ? "unsafe, as known" : "VIOLATION")
                       : scenario.must_fail ? "NOTHING FOUND"
                                            : "holds";
  std::printf("%-22s %zu  %-10s %3u %10.3g %9llu %9llu %10llu %6.2f  %s\n", scenario.name,
              scenario.actors.size(), bound.c_str(), figures.words, figures.interleavings,
              static_cast<unsigned long long>(figures.states),
              static_cast<unsigned long long>(figures.runs),
              static_cast<unsigned long long>(figures.steps), seconds, result);
  if (found && !scenario.must_fail) {
    std::printf("  %s\n%s", figures.violation.c_str(), figures.trace.c_str());
  } else if (found) {
    std::printf("  %s: %s\n", scenario.must_fail, figures.violation.c_str());
  }
  std::fflush(stdout);
  if (json != nullptr) {
    const auto quoted = [](const std::string& text) {
      std::string out = "\"";
      for (const char each : text)
        out += each == '"' || each == '\\' ? std::string("\\") + each : std::string(1, each);
      return out + "\"";
    };
    std::fprintf(
        json,
        "{\"scenario\": \"%s\", \"meets\": %s, \"threads\": %zu, \"bound\": \"%s\", \"words\": %u, "
        "\"interleavings\": %.6g, \"states\": %llu, \"runs\": %llu, \"steps\": %llu, \"seconds\": "
        "%.3f, "
        "\"violation\": %s, \"expected\": %s, \"outcome\": %s}\n",
        scenario.name, quoted(scenario.meets).c_str(), scenario.actors.size(), bound.c_str(),
        figures.words, figures.interleavings, static_cast<unsigned long long>(figures.states),
        static_cast<unsigned long long>(figures.runs),
        static_cast<unsigned long long>(figures.steps), seconds, found ? "true" : "false",
        quoted(scenario.must_fail ? scenario.must_fail : "").c_str(),
        quoted(figures.violation).c_str());
  }
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  Request request;
  for (int i = 1; i < argc; ++i) {
    const bool more = i + 1 < argc;
    if (std::strcmp(argv[i], "--long") == 0)
      request.longer = true;
    else if (std::strcmp(argv[i], "--json") == 0 && more)
      request.json = argv[++i];
    else if (std::strcmp(argv[i], "--planted") == 0 && more)
      planted = std::atoi(argv[++i]);
    else if (std::strcmp(argv[i], "--preemptions") == 0 && more)
      request.preemptions = std::atoi(argv[++i]);
    else
      request.names.emplace_back(argv[i]);
  }
  FILE* json = request.json ? std::fopen(request.json, "w") : nullptr;
  if (request.json && json == nullptr) return 2;
  bool good = true;
  if (request.names.empty()) {
    for (const Litmus& litmus : all_litmus()) good = run_litmus(litmus) && good;
  }
  std::printf("%-22s %s  %-10s %3s %10s %9s %9s %10s %6s  %s\n", "scenario", "T", "bound", "W",
              "interleav.", "states", "runs", "steps", "s", "result");
  size_t ran = 0;
  for (const auto& group : {living_scenarios(), damage_scenarios(), segment_scenarios(),
                            death_scenarios(), table_scenarios()}) {
    for (const Scenario& scenario : group) {
      bool wanted = request.names.empty();
      for (const std::string& name : request.names) wanted = wanted || name == scenario.name;
      if (!wanted) continue;
      ++ran;
      good = run_scenario(scenario, request, json) && good;
    }
  }
  if (json != nullptr) std::fclose(json);
  if (ran == 0) {
    std::fprintf(stderr, "no scenario of that name\n");
    return 2;
  }
  return good ? 0 : 1;
}

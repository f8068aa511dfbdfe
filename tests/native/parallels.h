// What a `Parallel` may do with its ranges: on many threads, on one, late, in any order.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "driver.h"

namespace prnn::test {

using cpu::Body;
using cpu::Parallel;

// A thread for each range; `prepare(i)` runs before range i.
template <class Prepare>
void on_threads(int64_t n, const Body& body, Prepare prepare) {
  std::vector<std::thread> threads;
  const auto run = [&](int64_t i) {
    prepare(i);
    body(i, i + 1);
  };
  for (int64_t i = 1; i < n; ++i) threads.emplace_back(run, i);
  run(0);
  for (std::thread& thread : threads) thread.join();
}

struct Kind {
  const char* name;
  Parallel parallel;
  bool slow = false;  // for its sleep
};

inline std::vector<Kind> kinds(uint64_t seed) {
  const auto sleep = [](int64_t us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); };
  return {
      {"threads", [](int64_t n, const Body& body) { on_threads(n, body, [](int64_t) {}); }},
      // All of them at the door before the first may enter: a team of n, if there are cores for it.
      {"gathered",
       [](int64_t n, const Body& body) {
         std::atomic<int64_t> there{0};
         on_threads(n, body, [&](int64_t) {
           ++there;
           while (there < n) std::this_thread::yield();
         });
       }},
      {"whole", [](int64_t n, const Body& body) { body(0, n); }},
      {"one by one",
       [](int64_t n, const Body& body) {
         for (int64_t i = 0; i < n; ++i) body(i, i + 1);
       }},
      {"one by one, last first",
       [](int64_t n, const Body& body) {
         for (int64_t i = n; i-- > 0;) body(i, i + 1);
       }},
      // Two threads for n ranges: one takes them one by one, the other several at once.
      {"uneven",
       [](int64_t n, const Body& body) {
         std::thread other([&] {
           if (n > 1) body(n / 2, n);
         });
         for (int64_t i = 0; i < (n > 1 ? n / 2 : n); ++i) body(i, i + 1);
         other.join();
       }},
      {"delayed",
       [seed, sleep](int64_t n, const Body& body) {
         on_threads(n, body, [&](int64_t i) { sleep(Random(seed * 64 + uint64_t(i)).integer(0, 400)); });
       },
       true},
      {"delayed beyond the limit",
       [seed, sleep](int64_t n, const Body& body) {
         on_threads(n, body, [&](int64_t i) { sleep(Random(seed * 64 + uint64_t(i)).integer(0, 1) * 5000); });
       },
       true},
  };
}

}  // namespace prnn::test

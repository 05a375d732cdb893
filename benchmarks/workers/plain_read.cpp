// Reads memory and does nothing else with it: what bounds a step that uses every weight once.

#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// Vectors of the machine's width and several sums, so that the loads and not the additions are what takes time.
uint64_t sum(const uint64_t* words, std::size_t count) {
  constexpr std::size_t kSums = 64;
  uint64_t sums[kSums] = {};
  std::size_t index = 0;
  for (; index + kSums <= count; index += kSums) {
    for (std::size_t lane = 0; lane < kSums; ++lane) sums[lane] += words[index + lane];
  }
  uint64_t total = 0;
  for (; index < count; ++index) total += words[index];
  for (uint64_t each : sums) total += each;
  return total;
}

}  // namespace

// The sum of the 64-bit words of `count` pieces of memory, of `bytes[i]` bytes at `pieces[i]`. Each thread reads its
// share of every piece, as the threads of an engine do of every matrix.
extern "C" uint64_t plain_read(const void* const* pieces, const std::size_t* bytes, std::size_t count,
                               std::size_t threads) {
  std::vector<uint64_t> sums(threads);
  auto read = [&](std::size_t thread) {
    uint64_t total = 0;
    for (std::size_t piece = 0; piece < count; ++piece) {
      const auto* words = static_cast<const uint64_t*>(pieces[piece]);
      const std::size_t all = bytes[piece] / sizeof(uint64_t);
      const std::size_t begin = all * thread / threads, end = all * (thread + 1) / threads;
      total += sum(words + begin, end - begin);
    }
    sums[thread] = total;
  };
  std::vector<std::thread> others;
  for (std::size_t thread = 1; thread < threads; ++thread) others.emplace_back(read, thread);
  read(0);
  for (std::thread& other : others) other.join();
  uint64_t total = 0;
  for (uint64_t each : sums) total += each;
  return total;
}

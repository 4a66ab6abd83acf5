// The threads of one device: they wait briefly spinning, then asleep, and run each job together.
//
// The caller is the first of them. Each has a share of a phase's work, which it does front to back: memory is fetched
// faster so. Who is done takes pieces of the others' shares, so that a thread which the system has put aside for a while
// delays the others by one piece; what is computed does not depend on who does it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace mk {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: spinning first, as most waits are shorter than a sleep.
inline void wait_while(const std::atomic<uint32_t>& value, uint32_t old, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        relax();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

class Team {
  public:
    static constexpr int SPINS = 4000;  // about 50 us
    static constexpr int MOST = 255;    // `announce` has 8 bits for their count

    // Throws where the system gives no more threads.
    explicit Team(int threads) {
        try {
            shares_ = std::make_unique<Share[]>(static_cast<size_t>(std::clamp(threads, 1, MOST)));
            for (int number = 1; number < std::min(threads, MOST); ++number) {
                threads_.emplace_back([this, number] { live(number); });
            }
        } catch (...) {
            end();
            throw;
        }
    }

    ~Team() { end(); }

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // Runs `job(number)` on `count` threads, the caller being number 0; returns when all have. It must not throw: in
    // a thread that would end the process.
    template <class Job>
    void run(int count, Job& job) {
        static_assert(noexcept(job(0)));
        count = std::clamp(count, 1, size());
        call_ = [](void* data, int number) { (*static_cast<Job*>(data))(number); };
        data_ = &job;
        active_ = count;
        busy_.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
        for (int number = 0; number < count; ++number) {
            Share& share = shares_[number];
            share.taken[0].store(0, std::memory_order_relaxed), share.taken[1].store(0, std::memory_order_relaxed);
            share.phase = 0;
        }
        if (count > 1) announce(count);
        job(0);
        if (busy_.fetch_sub(1, std::memory_order_acq_rel) != 1) {
            uint32_t left;
            while ((left = busy_.load(std::memory_order_acquire)) != 0) wait_while(busy_, left, SPINS);
        }
    }

    // `use(i)` for i from 0 to count - 1, in pieces of `piece`, together with the others; each calls it with the same.
    template <class Use>
    void split(int number, int count, int piece, Use use) {
        const int phase = shares_[number].phase;
        for (int offset = 0; offset < active_; ++offset) {
            const int whose = number + offset < active_ ? number + offset : number + offset - active_;
            const int begin = start_of(whose, count), end = start_of(whose + 1, count);
            std::atomic<int>& taken = shares_[whose].taken[phase];
            while (taken.load(std::memory_order_relaxed) < end - begin) {
                const int first = begin + taken.fetch_add(piece, std::memory_order_relaxed);
                for (int i = first; i < std::min(first + piece, end); ++i) use(i);
            }
        }
    }

    // The first of a thread's own share of `count`.
    int start_of(int number, int count) const { return static_cast<int>(static_cast<int64_t>(count) * number / active_); }

    // Everybody waits for everybody; the next phase begins.
    void meet(int number) {
        Share& share = shares_[number];
        if (active_ > 1) {
            const uint32_t round = round_.load(std::memory_order_acquire);
            if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(active_)) {
                arrived_.store(0, std::memory_order_relaxed);
                round_.store(round + 1, std::memory_order_release);
                round_.notify_all();
            } else {
                wait_while(round_, round, SPINS);
            }
        }
        // Nobody looks at the counts of the phase before any more: they are those of the next one.
        share.taken[share.phase].store(0, std::memory_order_relaxed);
        share.phase = 1 - share.phase;
    }

  private:
    void end() {
        ending_ = true;
        announce(size());
        for (auto& thread : threads_) thread.join();
    }

    // One word tells of a new job and for how many it is: a thread that looks late never takes one for the other.
    void announce(int count) {
        const uint32_t number = (job_.load(std::memory_order_relaxed) >> 8) + 1;
        job_.store(number << 8 | static_cast<uint32_t>(count), std::memory_order_release);
        job_.notify_all();
    }

    void live(int number) {
        uint32_t seen = 0;
        for (;;) {
            wait_while(job_, seen, SPINS);
            seen = job_.load(std::memory_order_acquire);
            if (ending_) return;
            if (number >= static_cast<int>(seen & 255)) continue;
            call_(data_, number);
            if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
        }
    }

    struct alignas(64) Share {
        std::atomic<int> taken[2] = {0, 0};  // how much of it, in this phase and the next
        int phase = 0;                       // which of them is this one's
    };

    std::vector<std::thread> threads_;
    std::unique_ptr<Share[]> shares_;
    void (*call_)(void*, int) = nullptr;
    void* data_ = nullptr;
    int active_ = 1;
    std::atomic<bool> ending_{false};
    alignas(64) std::atomic<uint32_t> job_{0};
    alignas(64) std::atomic<uint32_t> busy_{0};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
};

}  // namespace mk

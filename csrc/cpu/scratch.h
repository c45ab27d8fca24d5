// Memory that a call needs and nobody sees: growing blocks of a thread, cut into 64-byte aligned pieces.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "../common/types.h"

namespace qk {

class Scratch {
  public:
    // Blocks that live at the same time on one thread: of the call, and of the panel it is working on.
    enum Use { call, panel, kUses };

    // The block of this thread for a use, at least `bytes` long; earlier pieces are given up.
    static Scratch& get(int64_t bytes, Use use = call) {
        thread_local Scratch blocks[kUses];
        Scratch& scratch = blocks[use];
        scratch.used_ = 0;
        if (bytes > scratch.capacity_) {
            std::free(scratch.data_);
            scratch.capacity_ = 0;
            scratch.data_ = static_cast<char*>(std::aligned_alloc(64, round_up(bytes, 4096)));
            if (scratch.data_ == nullptr) throw std::bad_alloc();
            scratch.capacity_ = round_up(bytes, 4096);
        }
        return scratch;
    }
    template <class T>
    T* take(int64_t count) {
        T* piece = reinterpret_cast<T*>(data_ + used_);
        used_ += padded<T>(count);
        return piece;
    }
    template <class T>
    static int64_t padded(int64_t count) {
        return round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    }
    ~Scratch() { std::free(data_); }

  private:
    Scratch() = default;
    char* data_ = nullptr;
    int64_t capacity_ = 0, used_ = 0;
};

}  // namespace qk

// cp.async of one thread.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace host_cuda
{

class Copies
{
public:
    static constexpr size_t kMostBytes = 16;

    // The target is NaN until the copy arrives. Nothing says when the GPU reads the source: here as late as possible.
    void start(void* target, void const* source, size_t bytes, bool valid)
    {
        unsigned char touched[kMostBytes]; // a sanitizer should complain here, not at the wait
        if (valid)
        {
            std::memcpy(touched, source, bytes);
        }
        std::memset(target, 0xFF, bytes);
        copies_.push_back({target, valid ? source : nullptr, bytes});
    }

    void commit()
    {
        group_ends_.push_back(copies_.size());
    }

    // Lets all groups but the latest `pending` arrive, after a call of `note` with target, source and size of each copy.
    template <typename Note>
    void wait(size_t pending, Note note)
    {
        if (group_ends_.size() <= pending)
        {
            return;
        }
        size_t const groups = group_ends_.size() - pending;
        size_t const end = group_ends_[groups - 1];
        for (size_t i = 0; i < end; ++i)
        {
            static constexpr unsigned char kZeros[kMostBytes] = {};
            Copy const& copy = copies_[i];
            note(copy.target, copy.source, copy.bytes);
            std::memcpy(copy.target, copy.source == nullptr ? kZeros : copy.source, copy.bytes);
        }
        copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(end));
        group_ends_.erase(group_ends_.begin(), group_ends_.begin() + static_cast<std::ptrdiff_t>(groups));
        for (size_t& group_end : group_ends_)
        {
            group_end -= end;
        }
    }

    // Whether all have arrived; also forgets empty groups, of which a thread may leave any number.
    bool finished()
    {
        group_ends_.clear();
        return copies_.empty();
    }

private:
    struct Copy
    {
        void* target;
        void const* source; // null for zeros
        size_t bytes;
    };

    std::vector<Copy> copies_;
    std::vector<size_t> group_ends_; // of committed groups
};

} // namespace host_cuda

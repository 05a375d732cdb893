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
    static constexpr size_t kBytes = 16;

    // The target is NaN until the copy arrives. Nothing says when the GPU reads the source: here as late as possible.
    void start(void* target, void const* source, bool valid)
    {
        unsigned char touched[kBytes]; // a sanitizer should complain here, not at the wait
        if (valid)
        {
            std::memcpy(touched, source, kBytes);
        }
        std::memset(target, 0xFF, kBytes);
        copies_.push_back({target, valid ? source : nullptr});
    }

    void commit()
    {
        group_ends_.push_back(copies_.size());
    }

    // Lets all groups but the latest `pending` arrive, after a call of `note` with target and source of each copy.
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
            static constexpr unsigned char kZeros[kBytes] = {};
            note(copies_[i].target, copies_[i].source);
            std::memcpy(copies_[i].target, copies_[i].source == nullptr ? kZeros : copies_[i].source, kBytes);
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
    };

    std::vector<Copy> copies_;
    std::vector<size_t> group_ends_; // of committed groups
};

} // namespace host_cuda

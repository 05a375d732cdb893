// Dynamic shared memory, and which addresses are shared.
#pragma once

#include <cstddef>

namespace host_cuda
{

// The allocation of one launch: exactly the bytes asked for, so that AddressSanitizer sees what goes beyond them.
class SharedMemory
{
public:
    explicit SharedMemory(size_t bytes);
    ~SharedMemory();
    SharedMemory(SharedMemory const&) = delete;
    SharedMemory& operator=(SharedMemory const&) = delete;

    // All bits set, which is NaN in every element type: the contents at the start of a block are undefined.
    void clear();

    // Without AddressSanitizer: that the bytes behind it are as they were.
    void check() const;
};

} // namespace host_cuda

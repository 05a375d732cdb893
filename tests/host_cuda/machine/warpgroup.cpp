#include "machine/warpgroup.h"

#include <cmath>
#include <vector>

#include "intrinsics.h"
#include "machine/races.h"

extern dim3 threadIdx;

namespace host_cuda
{
namespace
{

constexpr unsigned kWarpRows = 16;
constexpr unsigned kDepth = 16; // the dimension that is summed over
constexpr unsigned kChunk = 8; // elements of 16 bytes
constexpr unsigned kMaxColumns = 128;
constexpr unsigned kMaxThreads = 1024;
constexpr uint32_t kWindow = 1024; // where dynamic shared memory begins; the first KiB is CUDA's
constexpr uint32_t kPattern = 1024; // bytes after which the 128-byte swizzle repeats

// A thread's products, the oldest first.
struct Queue
{
    std::vector<Product> products;
    std::vector<size_t> group_ends;
};

Queue& current_queue()
{
    static std::vector<Queue> queues(kMaxThreads);
    return queues.at(threadIdx.x);
}

// A matrix descriptor, decoded: "Matrix Descriptor Format".
struct Operand
{
    uint32_t start;
    uint32_t leading;
    uint32_t stride;
};

Operand decode(uint64_t descriptor)
{
    auto const field = [descriptor](unsigned first, unsigned bits) {
        return static_cast<uint32_t>(descriptor >> first & ((uint64_t{1} << bits) - 1));
    };
    constexpr uint32_t kSwizzle128 = 1;
    if (field(62, 2) != kSwizzle128)
    {
        refuse("matrix descriptor 0x%016llx: swizzle mode %u, the host knows mode 1 alone",
            static_cast<unsigned long long>(descriptor), field(62, 2));
    }
    if (field(14, 2) != 0 || field(30, 2) != 0 || field(46, 3) != 0 || field(49, 3) != 0 || field(52, 10) != 0)
    {
        refuse("matrix descriptor 0x%016llx: a base offset, or bits that have to be zero",
            static_cast<unsigned long long>(descriptor));
    }
    return {field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4};
}

// Eight elements at a byte offset from the start of an operand, which the swizzle moves: bits 4 .. 6 of the address are
// exclusive-ored with bits 7 .. 9.
void read_chunk(Site const& site, Operand const& operand, uint32_t offset, Widen widen, float (&values)[kChunk])
{
    uint32_t const address = operand.start + offset;
    uint32_t const swizzled = address ^ (address >> 3 & 0x70U);
    unsigned char const* const pointer = dynamic_shared_memory() + swizzled - kWindow;
    check_shared(site, pointer, true);
    record_warp_read(pointer, kChunk * sizeof(uint16_t), __builtin_return_address(0));
    widen(reinterpret_cast<uint16_t const*>(pointer), values, kChunk);
}

// Rows first .. first + count of an operand that is contiguous along the depth: eight rows are `kPattern` bytes, and
// groups of eight rows are `stride` apart.
void read_rows(Site const& site, Operand const& operand, unsigned first, unsigned count, Widen widen, float* rows)
{
    for (unsigned r = 0; r < count; ++r)
    {
        unsigned const row = first + r;
        for (unsigned k = 0; k < kDepth; k += kChunk)
        {
            float values[kChunk];
            read_chunk(site, operand, row / 8 * operand.stride + row % 8 * (kPattern / 8) + k * 2, widen, values);
            for (unsigned i = 0; i < kChunk; ++i)
            {
                rows[r * kDepth + k + i] = values[i];
            }
        }
    }
}

// The columns of an operand that is contiguous along them, 64 at a time: blocks of 64 are `leading` apart, groups of
// eight of the depth `stride`. As rows of the depth.
void read_columns(Site const& site, Operand const& operand, unsigned columns, Widen widen, float* rows)
{
    for (unsigned k = 0; k < kDepth; ++k)
    {
        for (unsigned n = 0; n < columns; n += kChunk)
        {
            float values[kChunk];
            uint32_t const offset = n / 64 * operand.leading + k / 8 * operand.stride + k % 8 * (kPattern / 8);
            read_chunk(site, operand, offset + n % 64 * 2, widen, values);
            for (unsigned i = 0; i < kChunk; ++i)
            {
                rows[(n + i) * kDepth + k] = values[i];
            }
        }
    }
}

struct Call
{
    Site site;
    Product product;
};

// The registers of a warp's A operand as rows.
void gather_registers(Arguments const& arguments, Widen widen, float* rows)
{
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    {
        uint32_t const* const a = static_cast<Call const*>(arguments[lane])->product.a;
        for (unsigned i = 0; i < 4; ++i)
        {
            uint16_t const elements[2] = {static_cast<uint16_t>(a[i]), static_cast<uint16_t>(a[i] >> 16)};
            widen(elements, rows + (lane / 4 + i % 2 * 8) * kDepth + i / 2 * 8 + lane % 4 * 2, 2);
        }
    }
}

void multiply(Arguments const& arguments, unsigned)
{
    Call const& first = *static_cast<Call const*>(arguments[0]);
    Product const& product = first.product;
    float a[kWarpRows * kDepth];
    float b[kMaxColumns * kDepth];
    if (product.a != nullptr)
    {
        gather_registers(arguments, product.widen, a);
    }
    else
    {
        unsigned const warp = threadIdx.x / kWarpLanes % 4;
        read_rows(first.site, decode(product.a_descriptor), warp * kWarpRows, kWarpRows, product.widen, a);
    }
    Operand const operand = decode(product.b_descriptor);
    if (product.b_by_columns)
    {
        read_columns(first.site, operand, product.columns, product.widen, b);
    }
    else
    {
        read_rows(first.site, operand, 0, product.columns, product.widen, b);
    }
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    {
        Product const& mine = static_cast<Call const*>(arguments[lane])->product;
        for (unsigned i = 0; i < product.columns / 2; ++i)
        {
            unsigned const row = lane / 4 + i % 4 / 2 * 8;
            unsigned const column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = mine.accumulate ? mine.accumulator[i] : 0.0F;
            for (unsigned k = 0; k < kDepth; ++k)
            {
                sum += a[row * kDepth + k] * b[column * kDepth + k];
            }
            mine.accumulator[i] = sum;
        }
    }
}

} // namespace

uint32_t window_address(void const* pointer)
{
    return static_cast<uint32_t>(static_cast<unsigned char const*>(pointer) - dynamic_shared_memory()) + kWindow;
}

void start_product(Product const& product)
{
    if (!product.accumulate)
    {
        for (unsigned i = 0; i < product.columns / 2; ++i)
        {
            product.accumulator[i] = NAN;
        }
    }
    current_queue().products.push_back(product);
}

void commit_products()
{
    Queue& queue = current_queue();
    queue.group_ends.push_back(queue.products.size());
}

void wait_for_products(Site const& site, size_t pending_groups)
{
    Queue& queue = current_queue();
    if (queue.group_ends.size() <= pending_groups)
    {
        return;
    }
    size_t const groups = queue.group_ends.size() - pending_groups;
    size_t const end = queue.group_ends[groups - 1];
    for (size_t i = 0; i < end; ++i)
    {
        Call call{site, queue.products[i]};
        meet_warp(site, kAllLanes, &call, multiply);
    }
    queue.products.erase(queue.products.begin(), queue.products.begin() + static_cast<std::ptrdiff_t>(end));
    queue.group_ends.erase(queue.group_ends.begin(), queue.group_ends.begin() + static_cast<std::ptrdiff_t>(groups));
    for (size_t& group_end : queue.group_ends)
    {
        group_end -= end;
    }
}

} // namespace host_cuda

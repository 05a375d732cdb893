// Every CPU kernel on threads of its own, over buffers without a byte to spare: for builds under sanitizers. Prints
// nothing and exits with 0 where each instruction set gives the same as one thread does.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "q2export/cpu.h"

namespace
{

constexpr int kThreads = 3;

void run_on_threads(void*, q2export_cpu_task task, void* data, size_t count)
{
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread)
    {
        threads.emplace_back([&] {
            for (size_t index = next++; index < count; index = next++)
            {
                task(data, index);
            }
        });
    }
    for (std::thread& thread : threads)
    {
        thread.join();
    }
}

q2export_cpu_parallel_for const kPool{run_on_threads, nullptr};

[[noreturn]] void fail(char const* what)
{
    std::fprintf(stderr, "%s: %s\n", what, q2export_cpu_last_error());
    std::exit(1);
}

// Numbers between -1 and 1, always the same.
std::vector<float> numbers(int64_t count)
{
    static uint32_t state = 1;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values)
    {
        state = state * 1664525u + 1013904223u;
        value = static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0f;
    }
    return values;
}

// Small exact numbers of a type, at an address that only divides by 2; ends where its allocation ends.
class Stored
{
public:
    Stored(int64_t count, q2export_dtype dtype)
        : size_(static_cast<size_t>(count) * (dtype == Q2EXPORT_FLOAT32 ? 4 : 2))
        , bytes_(new unsigned char[size_ + 2])
    {
        for (int64_t i = 0; i < count; ++i)
        {
            bool const negative = i * 7 % 3 == 0;
            float const one = negative ? -1.0f : 1.0f;
            uint32_t bits;
            std::memcpy(&bits, &one, 4);
            uint16_t const half = dtype == Q2EXPORT_BFLOAT16 ? static_cast<uint16_t>(bits >> 16)
                                                             : static_cast<uint16_t>(negative ? 0xbc00 : 0x3c00);
            void const* const source = dtype == Q2EXPORT_FLOAT32 ? static_cast<void const*>(&one) : &half;
            size_t const width = dtype == Q2EXPORT_FLOAT32 ? 4 : 2;
            std::memcpy(bytes_.get() + 2 + static_cast<size_t>(i) * width, source, width);
        }
    }

    void const* data() const
    {
        return bytes_.get() + 2;
    }

private:
    size_t size_;
    std::unique_ptr<unsigned char[]> bytes_;
};

void expect_same(char const* what, std::vector<float> const& a, std::vector<float> const& b)
{
    if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) != 0)
    {
        fail(what);
    }
}

void linear(int64_t rows, int64_t inputs, int64_t outputs, q2export_dtype dtype,
    q2export_cpu_activations activations = Q2EXPORT_CPU_ACTIVATIONS_FLOAT32)
{
    q2export_cpu_linear_desc const desc{rows, inputs, outputs, dtype, dtype, activations};
    std::vector<float> const x = numbers(rows * inputs);
    Stored const weight(inputs * outputs, dtype);
    Stored const bias(outputs, dtype);
    std::vector<float> alone(static_cast<size_t>(rows * outputs));
    std::vector<float> together(alone.size());
    if (q2export_cpu_linear(&desc, x.data(), weight.data(), bias.data(), alone.data(), nullptr) != Q2EXPORT_SUCCESS
        || q2export_cpu_linear(&desc, x.data(), weight.data(), bias.data(), together.data(), &kPool)
            != Q2EXPORT_SUCCESS)
    {
        fail("linear");
    }
    expect_same("linear", alone, together);
}

void linears()
{
    for (q2export_dtype const dtype : {Q2EXPORT_FLOAT32, Q2EXPORT_FLOAT16, Q2EXPORT_BFLOAT16})
    {
        for (int64_t const rows : {1, 5, 26, 250})
        {
            linear(rows, 1, 1, dtype);
            linear(rows, 33, 70, dtype);
            linear(rows < 250 ? rows : 73, 1030, 131, dtype);
        }
    }
    for (int64_t const rows : {1, 5, 26, 250})
    {
        linear(rows, 1, 1, Q2EXPORT_BFLOAT16, Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16);
        linear(rows, 33, 70, Q2EXPORT_BFLOAT16, Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16);
        linear(rows < 250 ? rows : 73, 1030, 131, Q2EXPORT_BFLOAT16, Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16);
    }
}

std::vector<unsigned char> bytes(int64_t count)
{
    std::vector<unsigned char> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i)
    {
        values[i] = static_cast<unsigned char>(i * 37 % 251);
    }
    return values;
}

void quantized_linear(q2export_cpu_quantized_linear_desc const& desc, bool with_zero_points)
{
    int64_t const blocks = desc.in_features / desc.block_size;
    std::vector<float> const x = numbers(desc.rows * desc.in_features);
    std::vector<unsigned char> const codes = bytes(desc.out_features * desc.in_features * desc.bits / 8);
    Stored const scales(desc.out_features * blocks, Q2EXPORT_FLOAT16);
    std::vector<unsigned char> const points = bytes(desc.out_features * ((blocks * desc.bits + 7) / 8));
    std::vector<float> outputs[2];
    for (int together = 0; together < 2; ++together)
    {
        outputs[together].resize(static_cast<size_t>(desc.rows * desc.out_features));
        if (q2export_cpu_quantized_linear(&desc, x.data(), codes.data(), scales.data(),
                with_zero_points ? points.data() : nullptr, nullptr, outputs[together].data(),
                together == 1 ? &kPool : nullptr)
            != Q2EXPORT_SUCCESS)
        {
            fail("quantized_linear");
        }
    }
    expect_same("quantized_linear", outputs[0], outputs[1]);
}

void quantized_linears()
{
    for (int32_t const bits : {4, 8})
    {
        for (int32_t const block_size : {32, 128})
        {
            for (int64_t const rows : {1, 4, 7, 13})
            {
                for (bool const with_zero_points : {false, true})
                {
                    quantized_linear({rows, block_size * 3, 70, bits, block_size, Q2EXPORT_FLOAT32,
                                         Q2EXPORT_CPU_ACTIVATIONS_INT8},
                        with_zero_points);
                    quantized_linear({rows, block_size * 5, 9, bits, block_size, Q2EXPORT_FLOAT32,
                                         Q2EXPORT_CPU_ACTIVATIONS_FLOAT32},
                        with_zero_points);
                }
            }
        }
    }
}

// Caches without a position to spare, of which the last one stays empty in the second row.
void attention(q2export_dtype dtype, int64_t sequence, int32_t window, int32_t dim)
{
    int64_t const capacity = 260 + sequence;
    q2export_cpu_attention_desc const desc{2, sequence, capacity, 6, 2, dim, window, dtype, 0.3f, 1.0f};
    int64_t const past[] = {260, 3};
    int64_t const lengths[] = {sequence, sequence - 1};
    std::vector<float> const query = numbers(2 * sequence * 6 * dim);
    std::vector<float> const key = numbers(2 * sequence * 2 * dim);
    std::vector<float> const value = numbers(2 * sequence * 2 * dim);
    std::vector<float> const inv_freq = numbers(dim / 2);
    std::vector<float> outputs[2];
    for (int together = 0; together < 2; ++together)
    {
        size_t const bytes = static_cast<size_t>(2 * 2 * capacity * dim) * (dtype == Q2EXPORT_FLOAT32 ? 4 : 2);
        std::vector<unsigned char> key_cache(bytes);
        std::vector<unsigned char> value_cache(bytes);
        outputs[together].resize(query.size());
        if (q2export_cpu_attention(&desc, query.data(), key.data(), value.data(), past, lengths, inv_freq.data(),
                key_cache.data(), value_cache.data(), outputs[together].data(), together == 1 ? &kPool : nullptr)
            != Q2EXPORT_SUCCESS)
        {
            fail("attention");
        }
    }
    expect_same("attention", outputs[0], outputs[1]);
}

void attentions()
{
    for (q2export_dtype const dtype : {Q2EXPORT_FLOAT32, Q2EXPORT_FLOAT16, Q2EXPORT_BFLOAT16})
    {
        for (int32_t const dim : {10, 32})
        {
            attention(dtype, 1, 0, dim);
            attention(dtype, 2, 5, dim);
            attention(dtype, 23, 0, dim);
            attention(dtype, 23, 9, dim);
        }
    }
}

void moe(q2export_dtype dtype, int64_t tokens, q2export_cpu_activations activations = Q2EXPORT_CPU_ACTIVATIONS_FLOAT32)
{
    q2export_cpu_moe_desc const desc{tokens, 33, 21, 5, 2, 1, dtype, activations};
    std::vector<float> const hidden = numbers(tokens * 33);
    std::vector<float> const logits = numbers(tokens * 5);
    std::vector<Stored> held;
    std::vector<void const*> matrices[3];
    for (int matrix = 0; matrix < 3; ++matrix)
    {
        for (int expert = 0; expert < 5; ++expert)
        {
            held.emplace_back(33 * 21, dtype);
            matrices[matrix].push_back(held.back().data());
        }
    }
    std::vector<float> outputs[2];
    for (int together = 0; together < 2; ++together)
    {
        outputs[together].resize(hidden.size());
        if (q2export_cpu_moe(&desc, hidden.data(), logits.data(), matrices[0].data(), matrices[1].data(),
                matrices[2].data(), outputs[together].data(), together == 1 ? &kPool : nullptr)
            != Q2EXPORT_SUCCESS)
        {
            fail("moe");
        }
    }
    expect_same("moe", outputs[0], outputs[1]);
}

void moes()
{
    for (q2export_dtype const dtype : {Q2EXPORT_FLOAT32, Q2EXPORT_FLOAT16, Q2EXPORT_BFLOAT16})
    {
        moe(dtype, 1);
        moe(dtype, 30);
    }
    moe(Q2EXPORT_BFLOAT16, 1, Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16);
    moe(Q2EXPORT_BFLOAT16, 240, Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16); // more rows than stream weights
}

void quantized_moe(int32_t bits, int64_t tokens, q2export_cpu_activations activations, bool with_zero_points)
{
    q2export_cpu_quantized_moe_desc const desc{tokens, 96, 64, 5, 2, 1, bits, 32, activations};
    std::vector<float> const hidden = numbers(tokens * 96);
    std::vector<float> const logits = numbers(tokens * 5);
    std::vector<unsigned char> const gate_up = bytes(5 * 128 * 96 * bits / 8);
    std::vector<unsigned char> const down = bytes(5 * 96 * 64 * bits / 8);
    Stored const gate_up_scale(5 * 128 * 3, Q2EXPORT_FLOAT16);
    Stored const down_scale(5 * 96 * 2, Q2EXPORT_FLOAT16);
    std::vector<unsigned char> const gate_up_points = bytes(5 * 128 * ((3 * bits + 7) / 8));
    std::vector<unsigned char> const down_points = bytes(5 * 96 * ((2 * bits + 7) / 8));
    std::vector<float> outputs[2];
    for (int together = 0; together < 2; ++together)
    {
        outputs[together].resize(hidden.size());
        if (q2export_cpu_quantized_moe(&desc, hidden.data(), logits.data(), gate_up.data(), gate_up_scale.data(),
                with_zero_points ? gate_up_points.data() : nullptr, down.data(), down_scale.data(),
                with_zero_points ? down_points.data() : nullptr, outputs[together].data(),
                together == 1 ? &kPool : nullptr)
            != Q2EXPORT_SUCCESS)
        {
            fail("quantized_moe");
        }
    }
    expect_same("quantized_moe", outputs[0], outputs[1]);
}

void quantized_moes()
{
    for (int32_t const bits : {4, 8})
    {
        for (int64_t const tokens : {1, 30})
        {
            quantized_moe(bits, tokens, Q2EXPORT_CPU_ACTIVATIONS_INT8, tokens == 1);
            quantized_moe(bits, tokens, Q2EXPORT_CPU_ACTIVATIONS_FLOAT32, tokens == 30);
        }
    }
}

} // namespace

int main()
{
    q2export_cpu_isa const best = q2export_cpu_selected_isa();
    for (q2export_cpu_isa isa = Q2EXPORT_CPU_PORTABLE; isa <= best; ++isa)
    {
        if (q2export_cpu_select_isa(isa) != Q2EXPORT_SUCCESS)
        {
            fail("select_isa");
        }
        linears();
        quantized_linears();
        attentions();
        moes();
        quantized_moes();
    }
    return 0;
}

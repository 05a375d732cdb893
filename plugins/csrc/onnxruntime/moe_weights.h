// The matrices of Q2MoE: gate_0 [I, H], up_0 [I, H], down_0 [H, I], gate_1, ...
#pragma once

#include <string>
#include <vector>

#include "tensor.h"

namespace q2export::onnxruntime
{

inline constexpr char const* kMoeMatrices[] = {"gate", "up", "down"};

// The experts' matrices, checked.
struct MoeWeights
{
    std::vector<void const*> of[3]; // gate, up, down of every expert
    q2export_dtype dtype = Q2EXPORT_FLOAT32;
    int64_t hidden_size = 0;
    int64_t intermediate_size = 0;

    void add(Tensor const& tensor)
    {
        size_t const matrix = of[0].size() == of[2].size() ? 0 : of[1].size() < of[0].size() ? 1 : 2;
        std::string const name = std::string(kMoeMatrices[matrix]) + "_" + std::to_string(of[matrix].size());
        if (of[0].empty())
        {
            dtype = float_dtype(tensor, name.c_str());
            expect_shape(tensor, name.c_str(), {-1, -1});
            intermediate_size = tensor.shape[0];
            hidden_size = tensor.shape[1];
        }
        int64_t const rows = matrix == 2 ? hidden_size : intermediate_size;
        expect_shape(tensor, name.c_str(), {rows, hidden_size + intermediate_size - rows});
        if (float_dtype(tensor, name.c_str()) != dtype)
        {
            throw Refusal(name + " has another element type than gate_0");
        }
        of[matrix].push_back(tensor.data);
    }
};

} // namespace q2export::onnxruntime

#include "common/sizes.h"

#include "common/log.h"

namespace q2export
{
namespace
{

// Throws Refusal where a tensor has another rank than its specification.
void check_rank(OpSpec const& spec, int32_t index, int32_t rank)
{
    TensorSpec const& tensor = input_spec(spec, index);
    if (rank == tensor.rank)
    {
        return;
    }
    std::string shape;
    for (int32_t i = 0; i < tensor.rank; ++i)
    {
        shape += (i == 0 ? "" : ", ") + std::string(symbol_name(tensor.shape[i]));
    }
    throw Refusal("input " + input_name(spec, index) + " has " + std::to_string(rank) + " dimensions, expected [" + shape + "]");
}

} // namespace

std::string input_name(OpSpec const& spec, int32_t index)
{
    std::string name = input_spec(spec, index).name;
    if (index >= spec.inputs.size())
    {
        name += "_" + std::to_string((index - spec.inputs.size()) / spec.repeated.size());
    }
    return name;
}

void refuse_size(std::string const& what, int64_t found, int64_t expected)
{
    throw Refusal(what + " is " + std::to_string(found) + ", expected " + std::to_string(expected));
}

Sizes bind_sizes(OpSpec const& spec, int32_t count, std::function<nvinfer1::Dims const&(int32_t)> const& dims_of_input)
{
    Sizes sizes;
    for (int32_t i = 0; i < count; ++i)
    {
        TensorSpec const& tensor = input_spec(spec, i);
        nvinfer1::Dims const& dims = dims_of_input(i);
        check_rank(spec, i, dims.nbDims);
        for (int32_t axis = 0; axis < tensor.rank; ++axis)
        {
            Symbol const symbol = tensor.shape[axis];
            unify(sizes[symbol], dims.d[axis],
                [&] { return std::string("dimension ") + symbol_name(symbol) + " of input " + input_name(spec, i); });
        }
    }
    if (sizes[Symbol::kDOver2] >= 0)
    {
        unify(sizes[Symbol::kD], 2 * sizes[Symbol::kDOver2],
            [] { return std::string("head_dim by the length of inv_freq"); });
    }
    return sizes;
}

} // namespace q2export

// Q2SwiGLU: silu(gate) * up.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr auto F = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr Operand kInputs[] = {{"gate", F}, {"up", F}}; // of one shape
constexpr Operand kOutputs[] = {{"output", F}};         // of the same

class Swiglu
{
public:
    static constexpr Signature kSignature{"Q2SwiGLU", {kInputs, 2}, {kOutputs, 1}};

    explicit Swiglu(Attributes const& /*attributes*/) {}

    void run(Call const& call) const
    {
        Tensor const gate = call.input(0, "gate", F);
        Tensor const up = call.input(1, "up", F);
        if (gate.shape.rank == 0)
        {
            throw Refusal("gate is a scalar, expected [..., intermediate_size]");
        }
        expect_shape(up, "up", gate.shape);
        int64_t const count = gate.shape.rows() * gate.shape.last();
        void* const output = call.output(0, gate.shape);
        Call::check(q2export_cpu_swiglu(count, static_cast<float const*>(gate.data), static_cast<float const*>(up.data),
            static_cast<float*>(output), call.threads()));
    }
};

} // namespace

OrtCustomOp const& swiglu_op()
{
    static Op<Swiglu> const op;
    return op;
}

} // namespace q2export::onnxruntime

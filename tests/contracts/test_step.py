"""What every graph and engine takes and gives, spelled out once more for a small model."""

from __future__ import annotations

from q2export.contracts.step import StepSignature, cache_names, tensor_named


def test_the_signature_of_a_model() -> None:
    signature = StepSignature(2, 3, 64, 151936, "bfloat16")
    assert [f"{each.name} {each.dtype} {list(each.shape)}" for each in signature.inputs] == [
        "input_ids int64 ['batch', 'sequence']",
        "past_lengths int64 ['batch']",
        "query_lengths int64 ['batch']",
        "logits_indices int64 ['batch', 'wanted']",
        "past_key.0 bfloat16 ['batch', 3, 'capacity', 64]",
        "past_value.0 bfloat16 ['batch', 3, 'capacity', 64]",
        "past_key.1 bfloat16 ['batch', 3, 'capacity', 64]",
        "past_value.1 bfloat16 ['batch', 3, 'capacity', 64]",
    ]
    outputs = [f"{each.name} {each.dtype} {list(each.shape)}" for each in signature.outputs]
    assert outputs[0] == "logits float32 ['batch', 'wanted', 151936]"
    assert outputs[1:] == [
        f"{each.name} {each.dtype} {list(each.shape)}".replace("past", "present")
        for each in signature.inputs[4:]
    ]
    assert [each.past for each in cache_names(2)] == [each.name for each in signature.inputs[4:]]
    assert [each.present for each in cache_names(2)] == [each.name for each in signature.outputs[1:]]


def test_a_tensor_is_found_by_its_name_in_any_layer() -> None:
    found = tensor_named("present_value.17")
    assert found is not None and found.shape == ("batch", "num_key_value_heads", "capacity", "head_dim")
    assert tensor_named("input_ids") is not None
    assert tensor_named("attention_mask") is None

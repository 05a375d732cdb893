#include "batch.h"

#include <algorithm>

#include "error.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kCapacityStep = 16; // tokens: few distinct cache shapes for at most 15 unused tokens per row

std::unique_ptr<Cache> make_cache(Core& core, size_t rows, size_t capacity)
{
    Core::Computing const computing(core);
    return computing.backend().new_cache(rows, capacity);
}

} // namespace

size_t rounded_capacity(size_t tokens, EngineInfo const& engine)
{
    size_t const rounded = (tokens + kCapacityStep - 1) / kCapacityStep * kCapacityStep;
    return std::min(rounded, static_cast<size_t>(engine.max_capacity));
}

Batch::Batch(std::shared_ptr<Core> core, size_t rows, size_t capacity)
    : core_(std::move(core))
    , cache_(make_cache(*core_, rows, capacity))
    , vocab_size_(static_cast<size_t>(core_->engine().vocab_size))
{
}

size_t Batch::room() const
{
    return group_.empty() ? cache_->rows() - running_.size() : 0;
}

void Batch::admit(std::vector<std::shared_ptr<Sequence>> sequences)
{
    if (sequences.empty())
    {
        return;
    }
    group_ = std::move(sequences);
    std::stable_sort(group_.begin(), group_.end(),
        [](auto const& a, auto const& b) { return a->prompt().size() > b->prompt().size(); });
    first_ = running_.size();
    std::vector<size_t> lengths;
    for (auto const& each : group_)
    {
        lengths.push_back(each->prompt().size());
        each->admitted_at = spent_;
    }
    calls_ = plan_prefill(lengths, static_cast<size_t>(core_->engine().prefill_chunk));
    next_call_ = 0;
}

void Batch::step()
{
    resumed_ = std::chrono::steady_clock::now();
    drop_cancelled();
    if (!running_.empty())
    {
        decode();
    }
    if (!group_.empty())
    {
        prefill();
    }
    spent_ = now();
    resumed_ = std::chrono::steady_clock::now();
}

void Batch::fail(std::exception_ptr const& error)
{
    for (auto* const list : {&running_, &group_})
    {
        auto const ended = std::move(*list);
        list->clear();
        for (auto const& each : ended)
        {
            end(*each, error);
        }
    }
}

double Batch::now() const
{
    return spent_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - resumed_).count();
}

void Batch::prefill()
{
    PrefillCall const& call = calls_[next_call_];
    Step& step = prefill_step_;
    size_t width = 0;
    for (size_t row = 0; row < call.rows; ++row)
    {
        size_t const length = group_[row]->prompt().size();
        width = std::max(width, std::min(call.far, length) - call.near);
    }
    step.shape(first_, call.rows, width, call.near == 0 ? 1 : 0, vocab_size_);
    for (size_t row = 0; row < call.rows; ++row)
    {
        std::vector<int64_t> const& prompt = group_[row]->prompt();
        size_t const past = prompt.size() - std::min(call.far, prompt.size());
        size_t const query = prompt.size() - call.near - past;
        std::copy_n(prompt.begin() + static_cast<std::ptrdiff_t>(past), query,
            step.input_ids.begin() + static_cast<std::ptrdiff_t>(row * width));
        step.past_lengths[row] = static_cast<int64_t>(past);
        step.query_lengths[row] = static_cast<int64_t>(query);
        if (step.wanted != 0)
        {
            step.logits_indices[row] = static_cast<int64_t>(query) - 1;
        }
    }
    {
        Core::Computing const computing(*core_);
        computing.backend().forward(*cache_, step);
    }
    if (++next_call_ == calls_.size())
    {
        finish_prefill();
    }
}

void Batch::finish_prefill()
{
    double const done = now();
    auto const group = std::move(group_);
    group_.clear();
    for (size_t row = 0; row < group.size(); ++row)
    {
        auto const& sequence = group[row];
        sequence->timings.prefill_seconds = done - sequence->admitted_at;
        if (sequence->cancelled)
        {
            end(*sequence, nullptr);
        }
        else if (advance(*sequence, prefill_step_.logits.data() + row * vocab_size_))
        {
            size_t const target = running_.size();
            if (target != first_ + row)
            {
                cache_->move_row(first_ + row, target, sequence->length() - 1);
            }
            running_.push_back(sequence);
        }
    }
}

void Batch::decode()
{
    Step& step = decode_step_;
    size_t const rows = running_.size();
    step.shape(0, rows, 1, 1, vocab_size_);
    for (size_t row = 0; row < rows; ++row)
    {
        step.input_ids[row] = running_[row]->token_ids.back();
        step.past_lengths[row] = static_cast<int64_t>(running_[row]->length()) - 1;
        step.query_lengths[row] = 1;
    }
    {
        Core::Computing const computing(*core_);
        computing.backend().forward(*cache_, step);
    }
    for (size_t row = 0; row < rows; ++row)
    {
        if (!advance(*running_[row], step.logits.data() + row * vocab_size_))
        {
            running_[row] = nullptr;
        }
    }
    drop_ended();
}

bool Batch::advance(Sequence& sequence, float* logits)
{
    try
    {
        if (!all_finite(logits, vocab_size_))
        {
            throw not_finite(logits, vocab_size_,
                "after token " + std::to_string(sequence.length() - 1) + " of prompt " + std::to_string(sequence.index()));
        }
        Event const event = sequence.advance(logits, vocab_size_);
        double const at = now() - sequence.admitted_at;
        Timings& timings = sequence.timings;
        if (sequence.token_ids.size() == 1)
        {
            timings.time_to_first_token = at;
        }
        timings.decode_seconds = at - timings.time_to_first_token;
        if (sequence.on_event)
        {
            sequence.on_event(sequence, event);
        }
    }
    catch (...)
    {
        end(sequence, std::current_exception());
        return false;
    }
    return sequence.finish_reason == Q2E_FINISH_NONE;
}

void Batch::end(Sequence& sequence, std::exception_ptr const& error) const
{
    sequence.error = error;
    if (sequence.on_end)
    {
        sequence.on_end(sequence);
    }
}

void Batch::drop_cancelled()
{
    for (auto& each : running_)
    {
        if (each->cancelled)
        {
            end(*each, nullptr);
            each = nullptr;
        }
    }
    drop_ended();
    bool const none_left = std::all_of(group_.begin(), group_.end(), [](auto const& each) { return each->cancelled.load(); });
    if (none_left)
    {
        auto const group = std::move(group_);
        group_.clear();
        for (auto const& each : group)
        {
            end(*each, nullptr);
        }
    }
}

// The last of those that still run take the rows of those that have ended.
void Batch::drop_ended()
{
    for (size_t row = running_.size(); row-- > 0;)
    {
        if (running_[row] != nullptr)
        {
            continue;
        }
        auto last = std::move(running_.back()); // runs still, unless it is the one of `row` itself
        running_.pop_back();
        if (row < running_.size())
        {
            cache_->move_row(running_.size(), row, last->length() - 1);
            running_[row] = std::move(last);
        }
    }
}

} // namespace q2export::runtime

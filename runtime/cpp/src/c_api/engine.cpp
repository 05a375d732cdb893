#include <cstddef>

#include "c_api/handles.h"
#include "contract.h"

using namespace q2export::runtime;

int q2e_abi_version(void)
{
    return Q2E_ABI_VERSION;
}

char const* q2e_version(void)
{
    return kVersion;
}

char const* q2e_error_message(q2e_error const* error)
{
    return error == nullptr ? "" : error->message.c_str();
}

q2e_status q2e_error_status(q2e_error const* error)
{
    return error == nullptr ? Q2E_OK : error->status;
}

void q2e_error_release(q2e_error* error)
{
    delete error;
}

q2e_status q2e_engine_open(char const* package, q2e_open_options const* options, q2e_engine** engine, q2e_error** error)
{
    return guarded(error, [&] {
        require(package, "package");
        require(engine, "engine");
        Core::OpenOptions given;
        if (options != nullptr)
        {
            q2e_open_options const asked = copy_in(options);
            if (asked.check < Q2E_CHECK_FAST || asked.check > Q2E_CHECK_NONE)
            {
                throw Error(Q2E_ARGUMENT_ERROR, "check must be one of q2e_check, found " + std::to_string(asked.check));
            }
            given.check = asked.check == Q2E_CHECK_FULL ? Check::kFull
                : asked.check == Q2E_CHECK_NONE         ? Check::kNone
                                                        : Check::kFast;
            given.threads = asked.threads;
            given.onnxruntime_library = asked.onnxruntime_library == nullptr ? "" : asked.onnxruntime_library;
            given.ops_library = asked.ops_library == nullptr ? "" : asked.ops_library;
        }
        *engine = new q2e_engine{std::make_shared<Core>(package, given)};
        return Q2E_OK;
    });
}

void q2e_engine_close(q2e_engine* engine)
{
    if (engine != nullptr)
    {
        guarded(nullptr, [&] {
            engine->core->close();
            return Q2E_OK;
        });
    }
}

void q2e_engine_release(q2e_engine* engine)
{
    if (engine == nullptr || engine->core->is_forked())
    {
        return; // its threads and locks are the parent's
    }
    q2e_engine_close(engine);
    delete engine;
}

q2e_status q2e_engine_get_info(q2e_engine const* engine, q2e_engine_info* info, q2e_error** error)
{
    return guarded(error, [&] {
        require(engine, "engine");
        check_size(info);
        EngineInfo const& sizes = engine->core->engine();
        q2e_engine_info filled{};
        filled.vocab_size = sizes.vocab_size;
        filled.max_batch = sizes.max_batch;
        filled.max_capacity = sizes.max_capacity;
        filled.prefill_chunk = sizes.prefill_chunk;
        filled.context_length = sizes.context_length;
        filled.has_kernels = engine->core->has_kernels() ? 1 : 0;
        copy_out(filled, info);
        return Q2E_OK;
    });
}

char const* q2e_engine_warnings(q2e_engine const* engine)
{
    return engine == nullptr ? "" : engine->core->warnings().c_str();
}

q2e_status q2e_score(q2e_engine* engine, int64_t const* token_ids, size_t token_count, float* logits, q2e_error** error)
{
    return guarded(error, [&] {
        require(engine, "engine");
        require(logits, "logits");
        q2e_prompt const prompt{sizeof(q2e_prompt), token_ids, token_count};
        score(*engine->core, token_ids_of(&prompt), logits);
        return Q2E_OK;
    });
}

/* libq2export: engines of q2export packages in C and C++ programs. This is the whole C ABI; q2export.hpp is a C++
 * layer over it, of headers alone.
 *
 * Stability. Functions are never removed and keep their meaning. Structures that a caller allocates begin with their
 * own size and grow at the end: set `size` to sizeof of the structure and everything else that is not wanted to 0.
 * Enumerations grow. q2e_abi_version() tells which of this a library has.
 *
 * Errors. What can fail returns a q2e_status and takes a place for a message, which may be NULL. Of a status other
 * than Q2E_OK, Q2E_END and Q2E_TIMEOUT the message says where, what was expected, what was found and what to do;
 * release it. Results are written only with Q2E_OK. Nothing throws, prints, or ends the process.
 *
 * Threads. Any function may be called from any thread. One handle may be used by several threads at once, but
 *   - no function may run on a handle while it is being released, or later;
 *   - q2e_options: setting one while another thread reads it is a race; reading is not.
 *   - q2e_stream_next of one stream, and q2e_scheduler_step of one scheduler, run one at a time: others wait.
 * Handles may be released in any order: a stream keeps what it needs of its engine.
 *
 * Fork. A child process must not use handles of its parent: an engine refuses to compute there, and releasing it is
 * safe and frees nothing. It may open packages of its own.
 *
 * Process. The first q2e_engine_open sets the environment variable ORT_DISABLE_TELEMETRY to 1 where it is not set,
 * before it loads ONNX Runtime. Its thread pool is its own; signals are not touched.
 *
 * Text is UTF-8 that ends with a zero byte. Token ids are int64_t, as in the graph.
 */
#ifndef Q2EXPORT_Q2EXPORT_H
#define Q2EXPORT_Q2EXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define Q2E_API __attribute__((visibility("default")))
#else
#define Q2E_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header: counted up when something is added. */
#define Q2E_ABI_VERSION 1

/* Of the library. A program compiled with a larger Q2E_ABI_VERSION may miss functions there. */
Q2E_API int q2e_abi_version(void);

/* Version of q2export, "0.1.0". */
Q2E_API char const* q2e_version(void);

typedef enum q2e_status
{
    Q2E_OK = 0,
    Q2E_END = 1,               /* of a stream: there is no further token */
    Q2E_TIMEOUT = 2,           /* nothing came in the time given */
    Q2E_ARGUMENT_ERROR = 3,    /* a null pointer, a structure without its size */
    Q2E_PACKAGE_ERROR = 4,     /* a package is damaged, incomplete or made for something else */
    Q2E_CONFIG_ERROR = 5,      /* generation_config.json or tokenizer files are malformed */
    Q2E_GENERATION_ERROR = 6,  /* a request is invalid: an option, a token id, more tokens than the capacity */
    Q2E_DEPENDENCY_ERROR = 7,  /* ONNX Runtime cannot be loaded */
    Q2E_CLOSED_ERROR = 8,      /* the engine or the scheduler was closed */
    Q2E_CANCELLED = 9,         /* the generation was cancelled before it ended */
    Q2E_MEMORY_ERROR = 10,     /* out of memory */
    Q2E_QUEUE_FULL = 11,       /* a scheduler has as many requests waiting as it may */
    Q2E_INTERNAL_ERROR = 12    /* a bug of q2export: please report it */
} q2e_status;

typedef struct q2e_error q2e_error;

Q2E_API char const* q2e_error_message(q2e_error const* error); /* valid until the release */
Q2E_API q2e_status q2e_error_status(q2e_error const* error);
Q2E_API void q2e_error_release(q2e_error* error); /* NULL does nothing, as in every q2e_*_release */

/* ---- Engines ---- */

typedef struct q2e_engine q2e_engine;

typedef enum q2e_check
{
    Q2E_CHECK_FAST = 0, /* sizes of all files, SHA-256 of those up to 64 MiB, samples of larger ones; the graph */
    Q2E_CHECK_FULL = 1, /* SHA-256 of all files */
    Q2E_CHECK_NONE = 2  /* the manifest alone: for packages whose origin is known */
} q2e_check;

#define Q2E_THREADS_OF_PROFILE (-1)

typedef struct q2e_open_options
{
    size_t size;
    q2e_check check;
    int threads;                     /* CPU threads; 0 is one per core, Q2E_THREADS_OF_PROFILE what the package says */
    char const* onnxruntime_library; /* file of libonnxruntime.so; NULL looks for it, see docs/cpp.md */
    char const* ops_library;         /* file of libq2export_onnxruntime.so; NULL looks for it */
} q2e_open_options;

/* Open a package. `options` may be NULL: a fast check, threads as the package says. */
Q2E_API q2e_status q2e_engine_open(
    char const* package, q2e_open_options const* options, q2e_engine** engine, q2e_error** error);

/* Free the engine: what other threads do with it ends with Q2E_CLOSED_ERROR after the step that runs, for which this
 * waits. May be called again. The handle itself lives until the release, which closes as well. */
Q2E_API void q2e_engine_close(q2e_engine* engine);
Q2E_API void q2e_engine_release(q2e_engine* engine);

typedef struct q2e_engine_info
{
    size_t size;
    int64_t vocab_size;    /* width of the logits */
    int64_t max_batch;     /* sequences per call */
    int64_t max_capacity;  /* tokens per sequence, prompt and generated */
    int64_t prefill_chunk; /* longest piece of a prompt that is run at once, in tokens */
    int64_t context_length;
    int has_kernels;       /* whether the CPU kernels of q2export run the ops */
} q2e_engine_info;

/* Sizes of an engine, also of a closed one. Set info->size first. */
Q2E_API q2e_status q2e_engine_get_info(q2e_engine const* engine, q2e_engine_info* info, q2e_error** error);

/* What the user should know, one per line: fields of generation_config.json without effect, missing kernels. Empty if
 * there is nothing. Valid until the release of the engine. */
Q2E_API char const* q2e_engine_warnings(q2e_engine const* engine);

/* ---- Text: the tokenizer of a package, with the token ids of Hugging Face's tokenizers ----
 *
 * Chat templates are rendered by the caller. Encode what a template gives with no_special_tokens_around, and name in
 * `given` the parts of it that users wrote: no text of theirs becomes a special token. */

typedef struct q2e_tokenizer q2e_tokenizer;

/* Of a folder with tokenizer.json and, where there is one, tokenizer_config.json: a package, or a checkpoint. A tokenizer
 * that is not a byte-level BPE with the pre-tokenizer of Qwen2 is refused. */
Q2E_API q2e_status q2e_tokenizer_open(char const* folder, q2e_tokenizer** tokenizer, q2e_error** error);

/* That of an engine, which may be released before it. */
Q2E_API q2e_status q2e_engine_get_tokenizer(q2e_engine const* engine, q2e_tokenizer** tokenizer, q2e_error** error);
Q2E_API void q2e_tokenizer_release(q2e_tokenizer* tokenizer);

/* Bytes of a text, from the first to before the last. */
typedef struct q2e_span
{
    size_t start;
    size_t end;
} q2e_span;

typedef struct q2e_encode_options
{
    size_t size;
    int no_special_tokens_around; /* not 0: without what the tokenizer puts around a text; Qwen2's puts nothing */
    int special_tokens_as_text;   /* not 0: what reads like a special token is encoded as the text it is */
    size_t most_tokens;           /* refuse a text that is longer, for certain, before it is encoded; 0: any length */
    q2e_span const* given;        /* in order: what reads like a special or another added token in them is text */
    size_t given_count;
} q2e_encode_options;

typedef struct q2e_tokens q2e_tokens;

/* Token ids of UTF-8 text, which may have zero bytes. `options` may be NULL. Not UTF-8, too long:
 * Q2E_GENERATION_ERROR. */
Q2E_API q2e_status q2e_encode(q2e_tokenizer const* tokenizer, char const* text, size_t text_bytes,
    q2e_encode_options const* options, q2e_tokens** tokens, q2e_error** error);
Q2E_API size_t q2e_tokens_count(q2e_tokens const* tokens);
Q2E_API int64_t const* q2e_tokens_ids(q2e_tokens const* tokens); /* valid until the release */
Q2E_API void q2e_tokens_release(q2e_tokens* tokens);

typedef struct q2e_text q2e_text;

/* Text of token ids, with U+FFFD for bytes that are not UTF-8; ids that the tokenizer does not have are left out, and
 * special tokens unless `keep_special_tokens`. */
Q2E_API q2e_status q2e_decode(q2e_tokenizer const* tokenizer, int64_t const* token_ids, size_t token_count,
    int keep_special_tokens, q2e_text** text, q2e_error** error);
Q2E_API char const* q2e_text_data(q2e_text const* text); /* ends with a zero byte; valid until the release */
Q2E_API size_t q2e_text_bytes(q2e_text const* text);
Q2E_API void q2e_text_release(q2e_text* text);

typedef struct q2e_detokenizer q2e_detokenizer;

/* Text of tokens as they come: a character whose bytes are spread over tokens is never given half. One thread at a time.
 * What feed and flush give is valid until the next call; flush gives the rest at the end of a text, and begins anew. */
Q2E_API q2e_status q2e_detokenizer_create(
    q2e_tokenizer const* tokenizer, q2e_detokenizer** detokenizer, q2e_error** error);
Q2E_API q2e_status q2e_detokenizer_feed(
    q2e_detokenizer* detokenizer, int64_t token_id, char const** text, size_t* text_bytes, q2e_error** error);
Q2E_API q2e_status q2e_detokenizer_flush(
    q2e_detokenizer* detokenizer, char const** text, size_t* text_bytes, q2e_error** error);
Q2E_API void q2e_detokenizer_release(q2e_detokenizer* detokenizer);

/* ---- Options of generation: those of q2export.GenerationOptions in Python, by name ---- */

typedef struct q2e_options q2e_options;

Q2E_API q2e_status q2e_options_create(q2e_options** options, q2e_error** error);
Q2E_API q2e_status q2e_options_set_integer(q2e_options* options, char const* name, int64_t value, q2e_error** error);
Q2E_API q2e_status q2e_options_set_number(q2e_options* options, char const* name, double value, q2e_error** error);
Q2E_API q2e_status q2e_options_set_flag(q2e_options* options, char const* name, int value, q2e_error** error);
Q2E_API q2e_status q2e_options_set_seeds(
    q2e_options* options, char const* name, uint64_t const* values, size_t count, q2e_error** error);
Q2E_API q2e_status q2e_options_set_strings(
    q2e_options* options, char const* name, char const* const* values, size_t count, q2e_error** error);
Q2E_API q2e_status q2e_options_set_biases(q2e_options* options, char const* name, int64_t const* token_ids,
    double const* biases, size_t count, q2e_error** error);
Q2E_API void q2e_options_release(q2e_options* options);

/* ---- Generating ---- */

typedef struct q2e_prompt
{
    size_t size;
    int64_t const* token_ids;
    size_t token_count;
} q2e_prompt;

typedef enum q2e_finish_reason
{
    Q2E_FINISH_NONE = 0,   /* it goes on */
    Q2E_FINISH_STOP = 1,   /* an end-of-text token or a stop string */
    Q2E_FINISH_LENGTH = 2  /* max_new_tokens, or the engine is full */
} q2e_finish_reason;

/* One token as it comes. */
typedef struct q2e_event
{
    size_t size;
    size_t prompt;                   /* index within the batch */
    int64_t token_id;
    q2e_finish_reason finish_reason; /* of the last token */
    char const* text;                /* what can now be shown; pointers are valid until the next event of the stream */
    size_t text_bytes;
    double logprob;                  /* of the token, if the option logprobs asks for it; else NaN */
    size_t top_count;                /* the likeliest tokens in its place, the likeliest first */
    int64_t const* top_token_ids;
    double const* top_logprobs;
} q2e_event;

/* One generated sequence; valid as long as what it came from. */
typedef struct q2e_result
{
    size_t size;
    int64_t const* token_ids;        /* with the end-of-text token or the tokens of the stop string */
    size_t token_count;
    q2e_finish_reason finish_reason;
    char const* text;                /* NULL without a tokenizer */
    size_t text_bytes;
    char const* stop_string;         /* that ended the text, else NULL */
    size_t prompt_tokens;
    double prefill_seconds;          /* all three: time spent computing in this batch or scheduler */
    double time_to_first_token;
    double decode_seconds;
    double const* logprobs;          /* [token_count]; NULL unless the option logprobs asks for them */
    size_t top_count;                /* per token */
    int64_t const* top_token_ids;    /* [token_count, top_count] */
    double const* top_logprobs;      /* [token_count, top_count] */
} q2e_result;

typedef struct q2e_results q2e_results;

/* Called for each token, in the thread that generates; anything but 0 cancels the generation. It may call any function
 * but releases of what is in use. */
typedef int (*q2e_event_callback)(q2e_event const* event, void* user);

/* Continue prompts, all at once. `options` and `callback` may be NULL. Cancelled by the callback: Q2E_CANCELLED. */
Q2E_API q2e_status q2e_generate(q2e_engine* engine, q2e_prompt const* prompts, size_t count, q2e_options const* options,
    q2e_event_callback callback, void* user, q2e_results** results, q2e_error** error);

Q2E_API size_t q2e_results_count(q2e_results const* results);
Q2E_API q2e_status q2e_results_get(q2e_results const* results, size_t index, q2e_result* result, q2e_error** error);
Q2E_API void q2e_results_release(q2e_results* results);

/* Logits after each token of one sequence: float32 [token_count, vocab_size], row after row. */
Q2E_API q2e_status q2e_score(
    q2e_engine* engine, int64_t const* token_ids, size_t token_count, float* logits, q2e_error** error);

/* ---- Streams: tokens pulled as they come ---- */

typedef struct q2e_stream q2e_stream;

Q2E_API q2e_status q2e_stream_open(q2e_engine* engine, q2e_prompt const* prompt, q2e_options const* options,
    q2e_stream** stream, q2e_error** error);

#define Q2E_FOREVER (-1)

/* The next token: Q2E_OK; Q2E_END after the last; Q2E_CANCELLED after a cancel. A stream of q2e_stream_open computes
 * here and knows no time limit; one of a scheduler waits at most that long for a step: Q2E_TIMEOUT. */
Q2E_API q2e_status q2e_stream_next(q2e_stream* stream, int64_t timeout_ms, q2e_event* event, q2e_error** error);

/* The whole result, after Q2E_END. */
Q2E_API q2e_status q2e_stream_get_result(q2e_stream* stream, q2e_result* result, q2e_error** error);

/* End the generation, at any time, without waiting; a step that runs is the last. */
Q2E_API void q2e_stream_cancel(q2e_stream* stream);
Q2E_API void q2e_stream_release(q2e_stream* stream); /* cancels what is left */

/* ---- Scheduler: requests that come and go share the engine's steps ---- */

typedef struct q2e_scheduler q2e_scheduler;

typedef struct q2e_scheduler_options
{
    size_t size;
    size_t rows;        /* sequences at once; 0 is the engine's max_batch */
    size_t capacity;    /* tokens per sequence; 0 is the engine's max_capacity */
    size_t max_waiting; /* requests that may wait for a row; 0 is 1024 */
} q2e_scheduler_options;

Q2E_API q2e_status q2e_scheduler_open(
    q2e_engine* engine, q2e_scheduler_options const* options, q2e_scheduler** scheduler, q2e_error** error);

/* Hand in a prompt; its tokens come from the stream while some thread steps. Its tokens do not depend on what runs
 * beside it. */
Q2E_API q2e_status q2e_scheduler_submit(q2e_scheduler* scheduler, q2e_prompt const* prompt, q2e_options const* options,
    q2e_stream** stream, q2e_error** error);

/* Compute one step for all sequences: at most one piece of new prompts, then one token of each that runs. With nothing
 * to do it waits at most `timeout_ms` for a request: Q2E_TIMEOUT. `unfinished`, which may be NULL, counts those that run
 * or wait. Errors of a single request end its stream; those of the engine end all streams and are returned. */
Q2E_API q2e_status q2e_scheduler_step(
    q2e_scheduler* scheduler, int64_t timeout_ms, size_t* unfinished, q2e_error** error);

/* End all requests with Q2E_CLOSED_ERROR and wake whoever waits in a step. */
Q2E_API void q2e_scheduler_close(q2e_scheduler* scheduler);
Q2E_API void q2e_scheduler_release(q2e_scheduler* scheduler);

#ifdef __cplusplus
}
#endif

#endif

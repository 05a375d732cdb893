/* The C ABI alone:  minimal PACKAGE ID... continues the prompt by 16 of the likeliest tokens. */
#include <stdio.h>
#include <stdlib.h>

#include "q2export/q2export.h"

static int shown(q2e_event const* event, void* user)
{
    (void)user;
    printf("%lld ", (long long)event->token_id);
    return 0; /* go on */
}

static void check(q2e_status status, q2e_error** error)
{
    if (status != Q2E_OK)
    {
        fprintf(stderr, "error: %s\n", q2e_error_message(*error));
        q2e_error_release(*error);
        exit(EXIT_FAILURE);
    }
}

int main(int count, char** words)
{
    q2e_engine* engine = NULL;
    q2e_options* options = NULL;
    q2e_results* results = NULL;
    q2e_error* error = NULL;
    int64_t token_ids[256];
    q2e_prompt prompt = {sizeof(prompt), token_ids, 0};

    if (count < 3)
    {
        fprintf(stderr, "usage: %s PACKAGE ID...\n", words[0]);
        return 2;
    }
    for (int i = 2; i < count && prompt.token_count < 256; ++i)
    {
        token_ids[prompt.token_count++] = strtoll(words[i], NULL, 10);
    }
    check(q2e_engine_open(words[1], NULL, &engine, &error), &error);
    check(q2e_options_create(&options, &error), &error);
    check(q2e_options_set_integer(options, "max_new_tokens", 16, &error), &error);
    check(q2e_options_set_flag(options, "do_sample", 0, &error), &error);
    check(q2e_generate(engine, &prompt, 1, options, shown, NULL, &results, &error), &error);
    printf("\n");

    q2e_results_release(results);
    q2e_options_release(options);
    q2e_engine_release(engine);
    return EXIT_SUCCESS;
}

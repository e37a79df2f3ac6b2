"""Words on the wire that servers and clients must both know: names of tensors, beginnings of errors.

Text generation speaks the dialect of Triton's vLLM backend (the README of
triton-inference-server/vllm_backend and its `_auto_complete_inputs_and_outputs`). Ours are `messages` and
`prompt_token_ids`, which may stand for `text_input`, and the outputs `num_cached_tokens` (what the prefix
cache saved), `prompt_logprobs` and `stop_reason`.
"""

from __future__ import annotations

# Text generation.
TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"
MESSAGES, PROMPT_TOKENS = "messages", "prompt_token_ids"
STREAM, SAMPLING, EXCLUDE_INPUT = "stream", "sampling_parameters", "exclude_input_in_output"
FINISH_REASON, CUMULATIVE_LOGPROB, LOGPROBS = "finish_reason", "cumulative_logprob", "logprobs"
INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS = "num_input_tokens", "num_output_tokens", "num_cached_tokens"
PROMPT_LOGPROBS, STOP_REASON = "prompt_logprobs", "stop_reason"
# Outputs that are sent only where an input of their name asks for them, with this before it.
RETURN = "return_"
ON_DEMAND = (
    FINISH_REASON,
    CUMULATIVE_LOGPROB,
    LOGPROBS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    CACHED_TOKENS,
    PROMPT_LOGPROBS,
    STOP_REASON,
)

# Encoders and encoder-decoders.
TEXT, PROMPT_NAME = "text", "prompt_name"
GENERATED_TEXT, MAX_NEW_TOKENS = "generated_text", "max_new_tokens"

# Errors in a gRPC stream have no status: clients tell them by how they begin.
INVALID_REQUEST = "invalid request: "
QUEUE_FULL = "the queue is full: "

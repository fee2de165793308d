"""Errors of many servers and gateways, each in its own shape and words, are classified."""

from __future__ import annotations

from typing import Any

import pytest

from chat.llm.errors import CAUSES, REFUSALS, Refusal
from chat.llm.refusals import is_page, read_error, refusal_of, seconds_to_wait


def classified(status: int, body: Any) -> Refusal | None:
    return refusal_of(status, read_error(body))


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def reason(status: int, body: Any) -> str | None:
    found = classified(status, body)
    return None if found is None else found.reason


@pytest.mark.parametrize(
    "message",
    [
        # llama.cpp, recorded from the embedded server
        "request (5031 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "This model's maximum context length is 4096 tokens. However, you requested 5000",
        "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000"
        " tokens. Please reduce the length of the messages.",
        "This model's maximum context length is 8192 tokens. However, you requested 9216 tokens"
        " (8192 in the messages, 1024 in the completion).",
        "This endpoint's maximum context length is 131,072 tokens. However, you requested about"
        " 537,812 tokens (537,000 of text input, 812 in the output).",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "Invalid request: Your request exceeded model token limit: 8192",
        "input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000",
        "prompt is too long: 203456 tokens > 200000 maximum",
        "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100",
        "Range of input length should be [1, 30720]",
        "Prompt contains 40960 tokens and 0 draft tokens, too large for model with 32768 maximum"
        " context length",
        "The decoder prompt is longer: context window exceeded",
        "The decoder prompt (length 5012) is longer than the maximum model length of 4096.",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.",
        "Prompt exceeds max length",
        "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
        "Total message token length exceed model limit (10000000 tokens).",
        "输入长度超过模型最大长度限制",
        "Prompt 超长",
        "The request was too long: input contains 9000 tokens but the limit is 8000",
        "Invalid 'messages[1].content': string too long. Expected a string with maximum length 10",
        "token limit exceeded",
        "Conversation too long; please start a new conversation",
        "litellm.ContextWindowExceededError: BadRequest",
        "This model's maximum context length is 8192 tokens, however you requested 9000 tokens (8000 in"
        " your prompt; 1000 for the completion). Please reduce your prompt; or completion length.",
    ],
)
def test_too_long_prompt_is_context(message):
    assert reason(400, error(message)) == "context"
    assert reason(0, error(message)) == "context"


@pytest.mark.parametrize(
    ("message", "window"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 5000", 4096),
        ("request (5031 tokens) exceeds the available context size (2048 tokens)", 2048),
        (
            "This endpoint's maximum context length is 131,072 tokens. However, you requested",
            131_072,
        ),
        ("This model's maximum prompt length is 131072 but the request contains 537812", 131_072),
        ("Invalid request: Your request exceeded model token limit: 8192", 8192),
        ("input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000", 200_000),
        ("prompt is too long: 203456 tokens > 200000 maximum", 200_000),
        (
            "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).",
            1_048_576,
        ),
        ("Range of input length should be [1, 30720]", 30_720),
        ("too large for model with 32768 maximum context length", 32_768),
        (
            "Request too large for model on tokens per min (TPM): Limit 30000, Requested 35064.",
            30_000,
        ),
        ("The decoder prompt is longer: context window exceeded", 0),
    ],
)
def test_refused_prompt_names_window(message, window):
    found = classified(400, error(message))

    assert found is not None
    assert found.window == window


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("x", code="context_length_exceeded")),
        (400, error("x", code=400, type="exceed_context_size_error")),
        (500, error("x", code=500, type="exceed_context_size_error")),
        (413, error("x")),
    ],
)
def test_codes_of_context_count(status, body):
    assert reason(status, body) == "context"


@pytest.mark.parametrize(
    ("message", "allowed"),
    [
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context"
            " length is 4096 tokens and your request has 20 input tokens",
            4076,
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 8212 tokens"
            " (20 in the messages, 8192 in the completion).",
            4076,
        ),
        (
            "max_tokens is too large: 100000. This model supports at most 16384 completion tokens,"
            " whereas you provided 100000.",
            16384,
        ),
        (
            "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens",
            8192,
        ),
        ("`max_tokens` must be less than or equal to `8192`, the maximum value", 8192),
        ("max_tokens must be less than 8193", 8192),
        ("Range of max_tokens should be [1, 2048]", 2048),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
        ("max_new_tokens is too large", None),
    ],
)
def test_too_high_cap_names_allowed_one(message, allowed):
    found = classified(400, error(message))

    assert found is not None
    assert (found.reason, found.allowed) == ("cap", allowed)
    assert found.is_longest is bool(allowed and not found.window)


LARGE = "Request too large for model in organization on tokens per min (TPM): "


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (429, LARGE + "Limit 30000, Requested 35064.", "too_large"),
        (413, LARGE + "Limit 6000, Requested 7000, please reduce your message size", "too_large"),
        (429, "Request too large for gpt-4", "too_large"),
        (429, "Rate limit reached. Limit 30000, Used 29000, Requested 1500.", None),
        (429, "Rate limit reached; context window 8k", None),
    ],
)
def test_request_above_limit_of_minute_is_too_large(status, message, expected):
    assert reason(status, error(message, type="tokens", code="rate_limit_exceeded")) == expected


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, error("x", code="insufficient_quota")),
        (402, {"detail": "x"}),
        (429, error("Insufficient balance or no resource package. Please recharge.", code="1113")),
        (
            429,
            error(
                "GatewayRateLimit: You exceeded your current quota, please check your plan and billing"
                " details.",
                type="throttling_error",
                code="429",
            ),
        ),
        (400, error("Your credit balance is too low to access the API.")),
        (400, {"code": "Arrearage", "message": "Access denied."}),
        (
            400,
            error(
                "Budget has been exceeded! Current cost: 1.2, Max budget: 1", type="budget_exceeded"
            ),
        ),
        (500, error("RateLimitError: insufficient_quota")),
        (400, error("You have reached your specified API usage limits.")),
        (403, error("user quota is not enough", type="new_api_error")),
        (403, error("Your credits are exhausted")),
        (403, error("Key limit exceeded (total limit).", code=403)),
        (400, error("ExceededTokenBudget: Current spend: 5.01; Max Budget for Token: 5.0")),
        (403, error("The free tier of the model has been exhausted.", code="FreeTierOnly")),
        (
            412,
            error(
                "Account is suspended, possibly due to reaching the monthly spending limit or"
                " failure to pay past invoices."
            ),
        ),
        (429, error("Weekly usage limit reached")),
    ],
)
def test_used_up_quota_is_found_in_words(status, body):
    assert reason(status, body) == "quota"


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        (
            {
                "details": [
                    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.5s"}
                ]
            },
            3.5,
        ),
        ({"details": [{"@type": "…QuotaFailure", "violations": []}, {"retryDelay": "41s"}]}, 41),
        ({"metadata": {"retry_after": 7}}, 7),
        ({"retry_after_seconds": 0.5}, 0.5),
    ],
)
def test_delay_in_a_field_is_temporary(details, seconds):
    body = error("You exceeded your current quota, check your plan and billing details.", **details)

    assert reason(429, body) is None
    assert seconds_to_wait(read_error(body)) == seconds


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "invalid_request_error"}, "request"),
        ({"type": "BadRequestError", "code": None}, "request"),
        ({"status": "INVALID_ARGUMENT"}, "request"),
        ({"type": "invalid_request_error", "code": "rate_limit_exceeded"}, None),
        ({"type": "server_error"}, None),
        ({}, None),
    ],
)
def test_refusal_in_stream_has_no_status(fields, expected):
    assert reason(0, error("It went wrong", **fields)) == expected


@pytest.mark.parametrize("value", ["soon", None, [3], {"s": 3}, True])
def test_other_delay_is_ignored(value):
    assert seconds_to_wait(read_error(error("Slow down", retryDelay=value))) is None


def test_quota_of_minute_is_temporary():
    message = "You exceeded your current quota. Please retry in 34.07s."
    body = [error(message, code=429, status="RESOURCE_EXHAUSTED")]

    assert reason(429, body) is None
    assert seconds_to_wait(read_error(body)) == 34.07


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"detail": "x"}),
        (
            400,
            [
                error(
                    "API key not valid. Please pass a valid API key.",
                    code=400,
                    status="INVALID_ARGUMENT",
                    details=[{"reason": "API_KEY_INVALID"}],
                )
            ],
        ),
        (403, error("Your API key was reported as leaked. Please use another one.")),
        (400, error("Incorrect API key provided", code="400")),
        (400, "Unauthorized"),
        (400, error("litellm.AuthenticationError: no key", code="400")),
        (403, error("Forbidden: Your API key does not have access")),
        (403, {"message": "The security token included in the request is invalid."}),
        (403, {"message": "The request signature we calculated does not match."}),
        (400, error("身份验证失败", code="1000")),
        (400, error("令牌已过期或验证不正确", code="1000")),
        (0, {"status_code": 1004, "status_msg": "login fail: Please carry the API secret key"}),
        (403, error("Method doesn't allow unregistered callers.", status="PERMISSION_DENIED")),
        (403, error("Virtual key expired", type="expired_key")),
    ],
)
def test_refused_key_is_found_in_words(status, body):
    assert reason(status, body) == "key"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, error("The model `x` does not exist.", type="NotFoundError", code=404)),
        (404, error('model "x" not found, try pulling it first', type="not_found_error")),
        (404, error("x", code="DeploymentNotFound")),
        (404, error("No endpoints found for x/y.")),
        (404, error("model: claude-nosuch", type="not_found_error")),
        (404, [error("models/x is not found for API version v1main", status="NOT_FOUND")]),
        (
            400,
            error(
                "/chat/completions: Invalid model name passed in model=m-nosuch. Call `/v1/models` to"
                " view available models for your key.",
                type="invalid_request_error",
                code="400",
            ),
        ),
        (400, error("Model Not Exist")),
        (500, error("litellm.NotFoundError: the model x does not exist")),
        (503, error("no available channel for model x")),
        (401, error("key not allowed to access model.", type="key_model_access_denied")),
        (403, error("该令牌无权访问模型 x", type="new_api_error")),
        (400, error("The provided model identifier is invalid.")),
        (403, {"message": "You don't have access to the model with the specified model ID."}),
        (400, error("Invocation of model ID x with on-demand throughput isn't supported.")),
        (400, error("litellm.BadRequestError: LLM Provider NOT provided.")),
        (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model"}),
    ],
)
def test_unknown_model_is_found_in_words(status, body):
    assert reason(status, body) == "model"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"detail": "Not Found"}),
        (404, ""),
        (404, error("File Not Found", type="not_found_error", code=404)),
        (404, error("Invalid URL (POST /v1/models/chat/completions)")),
        (404, error("Resource not found", code="404")),
        (405, {"detail": "Method Not Allowed"}),
        (400, "Client sent an HTTP request to an HTTPS server."),
        (301, ""),
        (0, {"detail": "Not Found"}),
        (0, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
    ],
)
def test_wrong_address_is_no_unknown_model(status, body):
    assert reason(status, body) == "address"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "address"), (404, "address"), (400, "address"), (403, "request"), (502, None)],
)
def test_page_is_classified_by_status(status, expected):
    page = "\n<!doctype html><html><body>The model was not found</body></html>"
    assert is_page(page)
    found = refusal_of(status, read_error(page), is_page=True)
    assert (found and found.reason) == expected


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("x", code="content_filter")),
        (0, {"status_code": 1026, "status_msg": "input new_sensitive"}),
        (446, {"error": "guardrails failed"}),
        (400, error("内容审核不通过")),
        (403, error("Prompt blocked due to security configurations", code=2016)),
        (
            400,
            error(
                "GatewayBadRequest: ContentPolicyViolation: The response was filtered due to the prompt"
                " triggering the content management policy.",
                code="400",
            ),
        ),
        (
            0,
            {
                "code": "DataInspectionFailed",
                "message": "Input data may contain inappropriate content.",
            },
        ),
        (400, error("Content Exists Risk")),
        (400, error("The request was rejected because it was considered high risk")),
        (403, error("Your input was flagged", metadata={"reasons": ["violence"]})),
        (500, error("ContentPolicyViolationError: content_filter")),
    ],
)
def test_refused_content_is_found_in_words(status, body):
    assert reason(status, body) == "content"


EXTRA = [
    {
        "type": "extra_forbidden",
        "loc": ["body", "stream_options", "include_usage"],
        "msg": "Extra inputs are not permitted",
        "input": "Insufficient balance",  # the request, which counts for nothing
    }
]
SYSTEM = "Unsupported value: 'messages[0].role' does not support 'system' with this model."


@pytest.mark.parametrize(
    ("body", "parameter", "is_missing"),
    [
        (
            error(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
                " 'max_completion_tokens' instead.",
                param="max_tokens",
                code="unsupported_parameter",
            ),
            "max_tokens",
            False,
        ),
        (error("'max_tokens' cannot be used with this model"), "max_tokens", False),
        (
            error("Unrecognized request argument supplied: max_completion_tokens"),
            "max_completion_tokens",
            False,
        ),
        ({"object": "error", "message": {"detail": EXTRA}}, "stream_options", False),
        ({"detail": EXTRA}, "stream_options", False),
        (
            [error('Invalid JSON payload. Unknown name "stream_options": Cannot find field.')],
            "stream_options",
            False,
        ),
        (
            error(
                "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default"
                " (1) value is supported.",
                param="temperature",
                code="unsupported_value",
            ),
            "temperature",
            False,
        ),
        (error("invalid temperature: only 1 is allowed for this model"), "temperature", False),
        (error("Unknown parameter: 'reasoning_effort'."), "reasoning_effort", False),
        (error("property 'add_generation_prompt' is unsupported"), "add_generation_prompt", False),
        (error(SYSTEM, param="messages[0].role", code="unsupported_value"), "system", False),
        (error("System role not supported"), "system", False),
        (error("Developer instruction is not enabled for models/gemma-3-27b-it"), "system", False),
        (
            error("Conversation roles must alternate user/assistant/user/assistant/..."),
            "system",
            False,
        ),
        (error("Only user, assistant and tool roles are supported!"), "system", False),
        (error('messages: Unexpected role "system".'), "system", False),
        (
            {"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Input should be 'user'"}]},
            "system",
            False,
        ),
        (
            error("`temperature` and `top_p` cannot both be specified for this model"),
            "temperature",
            False,
        ),
        (error("unexpected keyword argument 'stream_options'"), "stream_options", False),
        (error("Missing required parameter: 'max_tokens'"), "max_tokens", True),
        (
            {
                "detail": [
                    {"type": "missing", "loc": ["body", "max_tokens"], "msg": "Field required"}
                ]
            },
            "max_tokens",
            True,
        ),
    ],
)
def test_parameter_of_refusal_is_named(body, parameter, is_missing):
    expected = Refusal("parameter", parameter=parameter, is_missing=is_missing)
    assert classified(400, body) == expected
    assert classified(422, body) == expected


CAP_OF_131072 = (
    "max_tokens is too large: 1048576. This model supports at most 131072 completion tokens, whereas"
    " you provided 1048576."
)
N_KEEP = (
    "The number of tokens to keep from the initial prompt is greater than the context length"
    " (n_keep: 13055>= n_ctx: 4096). Try to load the model with a larger context length."
)


@pytest.mark.parametrize(
    ("message", "fields", "allowed"),
    [
        ("Param Incorrect", {"param": CAP_OF_131072, "type": "upstream_error"}, 131_072),
        ("The value of max_tokens is invalid, must be in range [1, 4096]", {"code": "1210"}, 4096),
        ("API 调用参数有误。max_tokens 最大值为 4095", {"code": "1210"}, 4095),
        ("`max_tokens` has to be less than 32768", {}, 32_767),
        ("The requested max_tokens (32000) is above the limit of 16384 for it.", {}, 16_384),
        ("Number of output tokens requested (9000) exceeds the limit (4096)", {}, 4096),
        ("Requested 100000 output tokens but the maximum is 32768", {}, 32_768),
        ("Too many output tokens requested: 9000 (max 8192)", {}, 8192),
        ("max_tokens (8193) must be in the range 1 to 8192", {}, 8192),
        ("maxOutputTokens must be in the range from 1 (inclusive) to 8193 (exclusive)", {}, 8192),
        ("max_tokens limited to 4096 for free accounts", {}, 4096),
        ("max_tokens can not be greater than 2048", {}, 2048),
        ("Please lower max_tokens to 2048 or less", {}, 2048),
        ("The maximum number of output tokens for this model is 2048", {}, 2048),
        ("This model supports a maximum of 2048 output tokens", {}, 2048),
        ("Output token limit exceeded: max 2048", {}, 2048),
        ("max_total_tokens (40000) must be less than or equal to max_seq_len (32768)", {}, None),
    ],
)
def test_cap_in_other_words_is_lowered(message, fields, allowed):
    for status in (0, 400):
        found = classified(status, error(message, **fields))
        assert found is not None
        assert (found.reason, found.allowed) == ("cap", allowed)


@pytest.mark.parametrize(
    ("body", "window"),
    [
        # vLLM subtracts the prompt from the window, LM Studio and llama.cpp report both as numbers
        (error("max_tokens must be at least 1, got -7584.", param="max_tokens"), 0),
        (error("Input length (11680) exceeds model's maximum context length (4096)."), 4096),
        ({"error": N_KEEP}, 4096),
        (
            error(
                "the request exceeds the available context size. try increasing the context size or"
                " enable context shift",
                type="exceed_context_size_error",
                n_prompt_tokens=1407,
                n_ctx=256,
            ),
            256,
        ),
        (error("Max Input Tokens=131072, Got=301450"), 131_072),
        (error("Requested input length 99009 exceeds maximum input length 8192"), 8192),
        (error("Reduce the length of the messages: it is 16429 while limit is 8192"), 8192),
        ({"error_code": 336103, "error_msg": "Prompt tokens too long"}, 0),
        ({"error_msg": "the max length of the current question is 20000"}, 20_000),
    ],
)
def test_prompt_in_other_words_is_too_long(body, window):
    for status in (0, 400, 500):
        found = classified(status, body)
        assert found is not None
        assert (found.reason, found.window) == ("context", window)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, {"error": "Your newly created team doesn't have any credits or licenses."}, "quota"),
        (403, error("chat pre-consumed quota failed, user quota: 138, need quota: 150"), "quota"),
        (403, error("x", code="pre_consume_token_quota_failed"), "quota"),
        (403, error("The billing account for the owning project is disabled"), "quota"),
        (429, error("You have reached your monthly limit. Upgrade your plan."), "quota"),
        (
            403,
            {"errors": [{"message": "This account is not allowed to access this model."}]},
            "model",
        ),
        (400, error("Gone.", code="model_decommissioned"), "model"),
        (403, error("Your API key does not have permission to use the resource."), "key"),
        (403, error("Generative Language API has not been used in project 1 before"), "key"),
        (400, error("You must be a member of an organization to use the API"), "key"),
        (403, error("该令牌状态不可用", type="new_api_error"), "key"),
        (400, {"errors": [{"code": 7003, "message": "Could not route to /accounts/x"}]}, "address"),
        (400, error("The service is too busy. Please retry after a while."), None),
        (403, {"errors": [{"message": "AiError: capacity temporarily exceeded"}]}, None),
        (424, {"error": "Request failed during generation", "error_type": "generation"}, None),
        (400, error("Service temporarily unavailable"), None),
        (403, error("Your request exceeds the max quota"), "quota"),
        (400, error("资源包余量已用尽"), "quota"),
        (403, error("Request had insufficient authentication scopes."), "key"),
        (400, {"Response": {"Error": {"Code": "AuthFailure.SecretIdNotFound"}}}, "key"),
        (0, {"message": "Too many tokens, please wait before trying again."}, None),
        (0, error("No deployments available for the model, Try again in 60 seconds."), None),
        (0, error("rate limit of 8,000 output tokens per minute", type="rate_limit_error"), None),
    ],
)
def test_refusal_in_other_words_has_its_reason(status, body, expected):
    assert reason(status, body) == expected


def test_roles_of_google_name_system_message():
    body = error("Please use a valid role: user, model.", status="INVALID_ARGUMENT")
    assert classified(400, body) == Refusal("parameter", parameter="system")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, [error("Resource exhausted", code=429, status="RESOURCE_EXHAUSTED")]),
        (429, {"error": "Too many requests"}),
        (408, ""),
        (503, error("The model is overloaded and not available")),
        (500, error("out of memory")),
        (0, error("Rate limit reached", type="requests", code="rate_limit_exceeded")),
        (0, "overloaded"),
        (400, error("model is currently overloaded", type="overloaded")),
        (400, error("当前分组上游负载已饱和", type="upstream_error")),
    ],
)
def test_temporary_error_is_no_refusal(status, body):
    assert classified(status, body) is None


@pytest.mark.parametrize(
    "body", ["", {}, [], None, 5, {"error": None}, {"error": {"message": ["a", {"b": 1}]}}]
)
def test_error_of_no_known_shape_is_request(body):
    assert reason(400, body) == "request"


def test_broken_characters_in_error_can_be_logged():
    report = read_error(error("bad \ud83d", code="x\udc00"))
    assert (report.message, report.codes) == ("bad ?", ["x?"])


def test_each_reason_has_words_and_cause():
    assert REFUSALS.keys() == CAUSES.keys()


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please try again in 1s.", 1),
        ("Please try again in 6m0s.", 360),
        ("try again in 20ms", 0.02),
        ("Please retry after 12 seconds.", 12),
        ("Please try again in a moment.", None),
    ],
)
def test_time_to_wait_is_read_from_words(message, seconds):
    assert seconds_to_wait(read_error(error(message))) == seconds

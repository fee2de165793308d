"""Classifies the errors of model providers: an error of any shape and wording becomes a `Refusal`.

Servers and gateways report the same few refusals in many ways, and a gateway often overwrites the
status or the code with its own. Codes, types and sentences are therefore searched together, after
they have been collected from whatever JSON the server sent. tests/chat/data/provider_answers.json
has examples from public bug reports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from chat.llm.errors import Reason, Refusal

SEARCHED_CHARACTERS = 4_000  # of an error's sentences; some quote the whole prompt
DEPTH = 8  # of the nesting in which sentences are looked for

CODE_FIELDS = {
    *("code", "type", "status", "reason"),
    *("error_code", "errorcode", "error_type", "status_code"),
}
SENTENCE_FIELDS = {
    *("message", "msg", "detail", "details", "error", "errors", "title", "description", "raw"),
    *("error_msg", "error_message", "errormessage", "error_description", "status_msg"),
}
COUNT_FIELDS = {"n_ctx": "Context size", "n_prompt_tokens": "Prompt tokens"}  # llama.cpp
DELAY_FIELDS = {"retrydelay", "retry_after", "retry_after_seconds"}  # the first is Google's: "3.5s"
# Pydantic's reports quote the request in these.
QUOTING_FIELDS = {"input", "ctx", "request", "prompt", "messages", "url"}

TEMPORARY_STATUSES = {408, 425, 429}  # and 5xx


@dataclass(slots=True)
class ErrorReport:
    """An error as a provider wrote it: its codes and types, its sentences, the parameters it names."""

    codes: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """All sentences, shortened."""
        return " ".join(self.sentences)[:SEARCHED_CHARACTERS]

    @property
    def status(self) -> int:
        """The HTTP status of an error that the report itself names; 0 without one."""
        numbers = (int(code) for code in self.codes if re.fullmatch(r"[45]\d\d", code))
        return next(numbers, 0)

    @property
    def title(self) -> str:
        """The most telling code, for the log."""
        named = (code for code in self.codes if not code.isdecimal() and code != "error")
        return next(named, next(iter(self.codes), ""))


def read_error(data: object) -> ErrorReport:
    """Collect codes, sentences and parameters from a decoded error: object, list or bare text."""
    report = ErrorReport()
    _collect(data, report, DEPTH)
    return report


def _collect(data: object, report: ErrorReport, depth: int) -> None:
    if isinstance(data, str):
        # Halves of surrogate pairs could not be logged.
        if text := data.strip().encode(errors="replace").decode():
            report.sentences.append(text)
    elif isinstance(data, list) and depth:
        for item in data[:20]:
            _collect(item, report, depth - 1)
    elif isinstance(data, dict) and depth:
        for key, value in data.items():
            name = str(key).lower()
            if name in CODE_FIELDS and isinstance(value, str | int) and not isinstance(value, bool):
                report.codes.append(str(value).encode(errors="replace").decode())
            elif name in {"param", "parameter", "loc", "field"}:
                # Pydantic gives the path as a list, such as ["body", "stream_options"].
                path = value if isinstance(value, list) else [value]
                names = [str(x) for x in path if isinstance(x, str | int) and x != "body"]
                name = ".".join(names)
                if " " in name:  # some gateways put the sentence here
                    report.sentences.append(name)
                elif name:
                    report.parameters.append(name)
            elif name in COUNT_FIELDS and isinstance(value, int):
                report.sentences.append(f"{COUNT_FIELDS[name]}: {value}.")
            elif name in DELAY_FIELDS and re.fullmatch(r"\d+(\.\d+)?s?", str(value)):
                report.sentences.append(f"Retry in {str(value).rstrip('s')}s.")
            elif name in SENTENCE_FIELDS or (
                isinstance(value, dict | list) and name not in QUOTING_FIELDS
            ):
                _collect(value, report, depth - 1)


QUOTA_CODES = re.compile(
    r"insufficient_(quota|credits?|balance|funds)|billing_(hard_limit|not_active)|payment_required"
    r"|exceeded_current_quota|quota_exhausted|budget_exceeded|Arrearage|AccountOverdue"
    r"|(insufficient|consume)_\w*quota",
    re.IGNORECASE,
)
QUOTA_WORDS = re.compile(
    r"insufficient (account )?(balance|quota|credits?|funds)|exceeded your (\w+ )?quota"
    r"|quota (has been |is |was )?(exceeded|exhausted|used up)|balance is (too low|insufficient)"
    r"|(out of|not enough|no more|more) credits?\b|please recharge|payment required"
    r"|budget has been exceeded|exceeded .{0,20}(budget|spend(ing)? limit)"
    r"|reached your .{0,30}usage limits?|(spend(ing)?|credit) limit .{0,30}(reached|exceeded)"
    r"|key limit exceeded|max budget|usage limit reached|free tier .{0,40}exhausted"
    r"|account .{0,120}(past invoices|non-payment)|doesn't have any credits|no credits\b"
    r"|billing account .{0,60}disabled|enable billing|need quota|consumed quota failed|overdue balance"
    r"|reached (your|its) .{0,12}(monthly|daily|spending) limit|exceeds? .{0,12}quota|资源包|已用尽"
    r"|quota is not enough|credits? (are |is |have been )?(exhausted|depleted|used up)"
    r"|monthly included credits|额度|hard limit has been reached|negative balance|in good standing|余额不足|欠费",
    re.IGNORECASE,
)
# Google reports the limit of a minute as a quota, too.
SOON_WORDS = re.compile(
    r"per[ _-]?(minute|second)|(retry|try again) in \d|retryDelay|wait before trying", re.IGNORECASE
)
TOO_LARGE_WORDS = re.compile(r"request too large|reduce your message size", re.IGNORECASE)
LIMIT_AND_REQUESTED = re.compile(
    r"limit:? *(\d+)\D+?(?:(?:used|current):? *\d+\D+?)?requested:? *(\d+)", re.IGNORECASE
)

# A server that subtracts the prompt from its window, with nothing left (older vLLM).
NO_ROOM = re.compile(r"tokens\W{0,3} must be at least 1, got -?\d", re.IGNORECASE)
# The context window, and the tokens of the prompt, in sentences that also name the reply's cap.
SUM = re.compile(r"(?P<prompt>\d+) \+ \d+ > (?P<window>\d+)")
WINDOW = re.compile(
    r"(?:context (?:length|window|size|limit)(?! \(n_keep)\D{0,30}?|\+ \S{0,20} must be <= |n_ctx: )"
    r"(?P<window>\d+)",
    re.IGNORECASE,
)
PROMPT_TOKENS = re.compile(
    r"(?P<prompt>\d+) (?:in (?:the|your) (?:messages|prompt|input)|of text input"
    r"|(?:input|prompt) tokens|`?inputs`? tokens|tokens from the input)"
    r"|(?:prompt tokens|n_keep): (?P<counted>\d+)",
    re.IGNORECASE,
)
# The limit of a prompt in other sentences: the number after such a word, else after a length.
STATED_LIMIT = re.compile(r"\b(?:max(?:imum)?|limit)\b\D{0,40}?(\d+)", re.IGNORECASE)
STATED_WINDOW = re.compile(
    r"(?:length|size|window|limit)(?: should be \[\d+,|\b\D{0,40}?) ?(\d+)|allowed \((\d+)\)"
    r"|> (\d+) maximum|with (\d+) maximum|max input tokens\W{1,3}(\d+)",
    re.IGNORECASE,
)
OUTPUT = r"(?:output|completion)[ _]tokens?"
CAP = r"(?:max(?:imum)?[ _]?(?:completion|output|new|total)?[ _]?tokens(?:_to_sample)?)"
CAP_WORDS = re.compile(
    rf"{CAP}.{{0,80}}?(too (large|high|big)|must (not exceed|be (less|at most|smaller|between|<=))"
    r"|should be (less|at most|between|<=|\[|in)|exceed|(greater|larger|more|higher) than|can ?not be more"
    r"|at most|out of range|in range|: \d+ > \d+|(above|over) (the )?(max|limit)|maximum (allowed )?value"
    r"|has to be (less|at most|between|<=)|in the range|limited to|or less\b"
    r"|supported range|less than or equal|value <= \d"
    r"|参数非法|超|限制|范围|最大)"
    rf"|{CAP} (is |allowed )*\d+"
    rf"|(range|maximum|limit) (of|for) ['\"`]?{CAP}|at most \d+ (completion|output) tokens|invalid {CAP} value"
    rf"|{OUTPUT}.{{0,60}}?(maximum|limit|exceed|\(max)|\b(maximum|limit|at most|up to)\b.{{0,40}}?{OUTPUT}",
    re.IGNORECASE | re.DOTALL,
)
# The highest cap, in sentences about a cap.
ALLOWED = re.compile(
    r"(at most|up to|<=|limited to|tokens to|range \d+ to|not be (?:greater|larger|more|higher) than|less than or equal to|(?:less|lower|smaller) than|not exceed|: \d+ >|最大值?[为是]"
    r"|between \d+ and|\[\d+, ?|from \d+ \(inclusive\) to"
    r"|(?:maximum|limit|\bmax\b)(?: \w+){0,8}?(?: is| of|:)?)\W{0,3}(\d+)(?P<exclusive> \(exclusive\))?",
    re.IGNORECASE,
)

CONTEXT_CODES = re.compile(
    r"context_?(length|window)|exceed_context_size|tokens_limit_reached|prompt_too_long",
    re.IGNORECASE,
)
CONTEXT_WORDS = re.compile(
    r"context[ _-]?(length|size|window|limit)"
    r"|(prompt|input|message|conversation|request)s?( tokens?)? ((is|are|was) )?too (long|large)\b"
    r"|max(imum)? length of the (current )?(question|prompt|input|message)"
    r"|max input tokens|too many (input |prompt )?tokens|input token count|(prompt|input) length|model token limit"
    r"|(input|prompt) tokens? exceed|exceed\w* .{0,30}token limit|reduce the length of"
    r"|token (length|count) .{0,20}?exceeds?|token limit exceeded|`inputs` must have less than|content\W{1,3}string too long"
    r"|超长|(输入|prompt|tokens?).{0,12}超过"
    r"|(input|prompt|request|message)s?\b.{0,40}? (is longer than|exceeds? (the )?max)"
    r"|max(imum)? (model|sequence) length|shorten (your|the) (prompt|input|message)|too large for model with",
    re.IGNORECASE,
)
CONTENT_CODES = re.compile(
    r"content_filter|content_policy|content_moderation|moderation|ResponsibleAI|inspection_?failed"
    r"|prohibited_content|content_blocked|sensitive_content",
    re.IGNORECASE,
)
CONTENT_WORDS = re.compile(
    r"content[ _-]?(management |moderation )?(policy|policies|filter|moderation|inspection|exists risk)"
    r"|inappropriate content|prohibited content|sensitive (content|words?|information)|\bflagged\b"
    r"|safety (system|filter|guideline|reasons|setting|polic)|usage polic(y|ies)|responsible ai"
    r"|considered high risk|blocked (due to|by|because of) .{0,30}(safety|polic|filter)"
    r"|violat\w+ .{0,60}(polic|guideline|terms)|new_sensitive|guardrails? (failed|violat)"
    r"|blocked due to security|敏感|不安全|内容审核",
    re.IGNORECASE,
)
MODEL_CODES = re.compile(
    r"model_?not_?(found|available|supported)|model_access_denied|model_decommissioned|deployment_?not_?found|invalid_?model|unknown_?model",
    re.IGNORECASE,
)
MODEL_WORDS = re.compile(
    r"(invalid|unknown|no such|unsupported|unrecognized) model|not a valid model|try pulling it"
    r"|\bmodels?\b.{0,120}?(not found|(does not|doesn't|not) exist|(not|no longer) available"
    r"|is not supported|not loaded|decommissioned|deprecated|is unknown)"
    r"|no (endpoints?|deployments?|models?|available channels?) .{0,30}?(found|available|loaded|for)"
    r"|deployment .{0,60}(not found|does not exist)|model identifier is invalid|(not allowed|don't have) access to (the )?model"
    r"|not allowed to access (this )?model|on-demand throughput|provider not provided|模型不存在|无权访问模型",
    re.IGNORECASE | re.DOTALL,
)
# Words that leave no doubt, even if a gateway has made the status a 5xx.
UNKNOWN_MODEL_WORDS = re.compile(
    r"(invalid|unknown|no such) model|\bmodel\b.{0,80}?(not found|(does not|doesn't|not) exist)"
    r"|no available channel|无可用渠道",
    re.IGNORECASE | re.DOTALL,
)
# LiteLLM without a database answers `no_db_connection` to any key but its own.
KEY_CODES = re.compile(
    r"no_db_connection|(invalid|incorrect|missing|expired)_api_key|api_key_(invalid|expired|missing)|unauthenticated"
    r"|authentication_error|invalid_authentication|AuthenticationError|AuthFailure",
    re.IGNORECASE,
)
KEY_WORDS = re.compile(
    r"(invalid|incorrect|wrong|expired|missing|revoked|disabled|provide an?|no) (\w+ )?"
    r"(api[ _-]?(key|token)|credentials|access token|auth\w* (token|header|credentials))"
    r"|api[ _-]?key.{0,40}?(not valid|invalid|incorrect|expired|not found|missing|required|revoked"
    r"|disabled|leaked|exist)|unauthori[sz]ed|authentication (failed|fails|error|required)"
    r"|not authenticated|key does not have permission|member of an organization|API has not been used in project"
    r"|invalid token|key does not have access|security token .{0,40}invalid|request signature"
    r"|(virtual |^)key expired|authentication (credentials|scopes)|unregistered callers|invalid proxy server token"
    r"|login fail|api_key:.{0,80}suspended|身份验证|令牌.{0,6}(过期|无效|不正确|不可用|已用尽)|无效的令牌",
    re.IGNORECASE,
)
ADDRESS_WORDS = re.compile(
    r"invalid url|unexpected endpoint|unknown (request )?(url|path|endpoint|route)|no (such )?route"
    r"|cannot post|(route|path|resource|file|page|url) .{0,80}?not found|plain http request|http request to an https server"
    r"|method not allowed|^not found\W?$|could not route to|not supported for requested URI",
    re.IGNORECASE,
)

REQUEST_CODES = re.compile(
    r"invalid_?request|bad_?request|invalid_?argument|validation_?error|unprocessable",
    re.IGNORECASE,
)
TEMPORARY_CODES = re.compile(
    r"rate_?limit|overloaded|exhausted|unavailable|time_?out|server_?error", re.IGNORECASE
)
# In a refusal of another status: the server is busy.
BUSY_WORDS = re.compile(
    r"overloaded|(try again|retry) (later|after|in a|shortly|soon)|too busy|capacity|no available workers"
    r"|failed during generation|temporarily|unexpected error|try your request again|负载|繁忙|请稍后",
    re.IGNORECASE,
)
PARAMETER_CODES = re.compile(
    r"(unsupported|unknown|unrecognized|invalid)_(parameter|value|argument|field)|extra_forbidden"
)
REFUSING_WORDS = re.compile(
    r"unsupported|not (currently |yet )?(supported|permitted|allowed|recognized|accepted|enabled)"
    r"|not one of|n[o']t support|unrecogni[sz]ed|unknown|unexpected|extra (inputs|fields)|additional propert"
    r"|cannot (both )?be (used|set|specified)|cannot find field|only .{0,60}(allowed|supported)"
    r"|no longer|deprecated|incompatible|invalid|use a valid",
    re.IGNORECASE,
)
MISSING_WORDS = re.compile(
    r"missing|required|must be (provided|specified|set\b(?! to))", re.IGNORECASE
)
KNOWN_PARAMETERS = re.compile(
    r"\b(max_completion_tokens|max_tokens|stream_options|temperature|top_p|reasoning_effort"
    r"|(?:presence|frequency)_penalty|continue_final_message|add_generation_prompt)\b"
    r"|(?<=['\"`])(stream|prefix|stop|tools|tool_choice|user|seed)(?=['\"`])"
)
QUOTED_PARAMETER = re.compile(
    r"(?:parameter|argument|field|name|propert\w+|inputs?)\W{1,12}([a-z]\w{2,40})['\"`]"
    r"|['\"`]([a-z]\w{2,40})['\"`] (?:is not|was unexpected)",
    re.IGNORECASE,
)
SYSTEM_WORDS = re.compile(
    r"(system|developer)['\"`]? (role|message|prompt|instruction)|role['\"`:]* ?['\"`]?(system|developer)"
    r"|support ['\"`]?(system|developer)['\"`]|variant ['\"`](system|developer)|roles must alternate"
    r"|valid role: user|only user.{1,30} roles? (is|are) supported|(system|developer)['\"`]? is not (one of|a valid role)",
    re.IGNORECASE,
)


def refusal_of(status: int, report: ErrorReport, *, is_page: bool = False) -> Refusal | None:
    """Classify an error by its HTTP status (0: unknown) and its report.

    `is_page` when the server answered with a page of HTML. Returns None for an error that may be
    temporary: the same request may succeed later.
    """
    status = status or report.status
    if is_page:
        return Refusal("address") if status in {200, 400, 404, 405, 410} else _by_status(status)
    codes, message = " ".join(report.codes), re.sub(r"(?<=\d),(?=\d{3}\b)", "", report.message)
    named = (
        f"{codes} {message}"  # gateways put the codes of the server behind them into the message
    )
    if QUOTA_CODES.search(named) or status == 402:
        return Refusal("quota")
    if QUOTA_WORDS.search(message) and not SOON_WORDS.search(f"{codes} {message}"):
        return Refusal("quota")
    if numbers := LIMIT_AND_REQUESTED.search(message):
        limit, requested = int(numbers[1]), int(numbers[2])
        if requested > limit:  # the request alone has more than the tokens of a minute
            return Refusal("too_large", window=limit)
    elif status in {413, 429} and TOO_LARGE_WORDS.search(message):
        return Refusal("too_large")
    if CONTEXT_CODES.search(codes):
        return _context(message) or Refusal("context")
    if CONTENT_CODES.search(codes):
        return Refusal("content")
    if MODEL_CODES.search(codes):
        return Refusal("model")
    if KEY_CODES.search(named) or status == 401:
        return Refusal("key")
    if status in TEMPORARY_STATUSES:
        return None
    is_limited = "rate_limit" in codes or SOON_WORDS.search(message)
    if status in {0, 400, 403} and is_limited:
        return None
    subject = report.parameters[0] if report.parameters else ""
    # The sentence of a field's own report need not name it.
    about_cap = f"{subject} {message}" if re.fullmatch(CAP, subject, re.IGNORECASE) else message
    found = _context(about_cap) or _parameter(codes, message, report.parameters)
    if found is not None:
        return found
    if CONTENT_CODES.search(message) or CONTENT_WORDS.search(message):
        return Refusal("content")
    if status >= 500:
        return Refusal("model") if UNKNOWN_MODEL_WORDS.search(message) else None
    if status == 404:
        is_path = ADDRESS_WORDS.search(message) or not re.search(
            r"model|deployment", message, re.IGNORECASE
        )
        return Refusal("address" if is_path and not MODEL_WORDS.search(message) else "model")
    if MODEL_CODES.search(message) or MODEL_WORDS.search(message):
        return Refusal("model")
    if KEY_WORDS.search(message):
        return Refusal("key")
    if ADDRESS_WORDS.search(message):
        return Refusal("address")
    refusal = _by_status(status)
    if status == 0 and REQUEST_CODES.search(codes) and not TEMPORARY_CODES.search(codes):
        refusal = Refusal("request")  # in a stream, which has no status
    if refusal is not None and refusal.reason == "request":
        if BUSY_WORDS.search(message):
            return None
        return replace(refusal, parameter=subject.partition(".")[0])
    return refusal


def _context(message: str) -> Refusal | None:
    """Return the refusal of a prompt that is too long, or of a cap that leaves it no room."""
    both = SUM.search(message)
    window, prompt = both or WINDOW.search(message), both or PROMPT_TOKENS.search(message)
    if window is not None and prompt is not None:
        tokens = int(window["window"])
        used = int(next(filter(None, (prompt["prompt"], prompt.groupdict().get("counted")))))
        room = max(0, tokens - used)
        # A prompt of more than half of the window leaves too little for a reply.
        reason: Reason = "cap" if used <= tokens // 2 else "context"
        return Refusal(reason, allowed=room or None, window=tokens)
    if NO_ROOM.search(message):
        return Refusal("context")
    if CAP_WORDS.search(message):
        allowed = ALLOWED.search(message)
        if allowed is None:
            return Refusal("cap")
        words = allowed[1].lower()
        is_below = words in {"less than", "lower than", "smaller than"}
        is_below = is_below or allowed["exclusive"] is not None
        return Refusal("cap", allowed=int(allowed[2]) - is_below, is_longest=window is None)
    if not CONTEXT_WORDS.search(message):
        return None
    stated = window or STATED_LIMIT.search(message) or STATED_WINDOW.search(message)
    return Refusal("context", window=int(next(filter(None, stated.groups()))) if stated else 0)


def _parameter(codes: str, message: str, parameters: list[str]) -> Refusal | None:
    """Return the refusal of a parameter, or of a request that lacks one."""
    if any(name.endswith("role") for name in parameters):
        return Refusal("parameter", parameter="system")
    is_refused = PARAMETER_CODES.search(codes) or REFUSING_WORDS.search(message)
    is_missing = MISSING_WORDS.search(message) or "missing" in codes
    if not is_refused and not is_missing:
        if re.search(r"roles must alternate", message) and "optional system" not in message:
            return Refusal("parameter", parameter="system")
        return None
    if is_refused and SYSTEM_WORDS.search(message):
        return Refusal("parameter", parameter="system")
    path = re.split(r"[.\[\]]+", parameters[0]) if parameters else [""]
    name = "prefix" if path[0] == "messages" and "prefix" in path else path[0]
    if not name:
        found = KNOWN_PARAMETERS.search(message)
        if found is None and not MODEL_WORDS.search(message):
            found = QUOTED_PARAMETER.search(message)
        name = (found[1] or found[2]) if found is not None else ""
    if not name or name in {"model", "messages"}:
        return None
    return Refusal("parameter", parameter=name, is_missing=not is_refused)


def _by_status(status: int) -> Refusal | None:
    """Return the refusal that an HTTP status alone means."""
    if status in {404, 405} or 300 <= status < 400:
        return Refusal("address")
    if status == 401:
        return Refusal("key")
    if status == 402:
        return Refusal("quota")
    if status == 413:
        return Refusal("context")
    if 400 <= status < 500 and status not in TEMPORARY_STATUSES:
        return Refusal("request")
    return None


def is_page(text: str) -> bool:
    """Return whether a body is HTML (or XML) instead of the JSON of an API."""
    return text.lstrip("\ufeff \t\r\n").startswith("<")


def seconds_to_wait(report: ErrorReport) -> float | None:
    """Return the seconds after which an error's own sentences say to try again; None without any."""
    found = re.search(
        r"(?:try again|retry) (?:in|after) (?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?) ?(ms|s\b|sec))?",
        report.message,
        re.IGNORECASE,
    )
    if found is None or not (found[1] or found[2]):
        return None
    seconds = float(found[2] or 0) / (1000 if found[3] == "ms" else 1)
    return 60.0 * int(found[1] or 0) + seconds

"""Django's settings. All variables are documented in .env.example and read through lib.env."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from chatproject.lib import env
from chatproject.lib.db import limits

BASE_DIR = Path(__file__).resolve().parent.parent
env.load_file(BASE_DIR, env.text("ENV_FILE"))

# --- The installation -------------------------------------------------------------------------

DEBUG = env.flag("DEBUG", default=False)
SECRET_KEY = env.secret("SECRET_KEY")
if not SECRET_KEY:
    raise ImproperlyConfigured(
        "SECRET_KEY is not set. Write 50 random characters, for example from "
        "`python -c 'import secrets; print(secrets.token_urlsafe(50))'`. `make run` generates its own."
    )
# Earlier values, while sessions, links and secrets of theirs are still accepted.
SECRET_KEY_FALLBACKS = env.secrets("SECRET_KEY_FALLBACKS")
# Of secrets at rest (lib.encryption): the first encrypts, all decrypt. Empty: derived from SECRET_KEY.
ENCRYPTION_KEYS = env.secrets("ENCRYPTION_KEYS", least=32)
ALLOWED_HOSTS = env.hosts("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
HTTPS = env.flag("HTTPS", default=not DEBUG)
TRUST_PROXY = env.hops("TRUST_PROXY")  # the number of proxies in front
SITE_NAME = env.text("SITE_NAME", "Parley")
# The service worker shows a page of the site while it cannot be reached, and notifications (docs/operations/pwa.md).
SERVICE_WORKER = env.flag("SERVICE_WORKER", default=True)
# Whether users may share the prompts of their library with all users.
SHARED_PROMPTS = env.flag("SHARED_PROMPTS", default=True)
# The web tools (chat/tools/): hosts of `web_fetch`, `*` for all public ones, none: it is off; the search engine of
# `web_search` (chat/tools/web_search.py); private networks that tools may contact.
WEB_FETCH_HOSTS = env.patterns("WEB_FETCH_HOSTS")
WEB_FETCH_MAX_KB = env.integer("WEB_FETCH_MAX_KB", 2_000, least=10, most=20_000)
WEB_FETCH_SECONDS = env.integer("WEB_FETCH_SECONDS", 20, least=1, most=40)
WEB_SEARCH_URL = env.url("WEB_SEARCH_URL", "")
WEB_SEARCH_BODY = env.json_object("WEB_SEARCH_BODY")
WEB_SEARCH_HEADER = env.header_line("WEB_SEARCH_HEADER")
WEB_SEARCH_FIELDS = env.pairs("WEB_SEARCH_FIELDS")
TOOL_NETWORKS = env.networks("TOOL_NETWORKS")
# Whether replies may use notes about their user, which the user or an assistant wrote.
USER_NOTES = env.flag("USER_NOTES", default=True)
# Whether users may have notifications of finished replies, by the push services of their browsers.
WEB_PUSH = env.flag("WEB_PUSH", default=True) and SERVICE_WORKER
# Hosts (with ports) of push services in the own network, which are contacted also without TLS.
PUSH_HOSTS = env.host_ports("PUSH_HOSTS")
# Outgoing webhooks (chat/webhooks/): those of a user at most, the days for which their log is kept, and private
# networks whose addresses they may have, also without TLS.
WEBHOOKS_PER_USER = env.integer("WEBHOOKS_PER_USER", 10)
WEBHOOK_LOG_DAYS = env.integer("WEBHOOK_LOG_DAYS", 30, least=4)
WEBHOOK_NETWORKS = env.networks("WEBHOOK_NETWORKS")
# For links in mails that are sent outside a request. Empty: they name the page instead of a link.
SITE_URL = env.origin("SITE_URL")

ROOT_URLCONF = "chatproject.urls"
ASGI_APPLICATION = "chatproject.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "chatproject",
    "chatproject.lib.mail",
    "chatproject.lib.leadership",
    "chatproject.lib.stored_limits",
    "accounts",
    "billing",
    "chat",
    "chat.documents",
    "chat.insights",
    "chat.tools",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "allauth",
    "accounts.apps.AddressesConfig",
    "accounts.apps.FactorsConfig",
    "accounts.apps.SessionsConfig",
    "accounts.apps.ConnectionsConfig",
    "django_rq",
    "django.forms",
]

MIDDLEWARE = [
    "chatproject.ops.metrics.MetricsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "chatproject.ops.compression.CompressionMiddleware",
    "chatproject.lib.staticfiles.StaticFilesMiddleware",
    "chatproject.ops.private_pages.PrivatePagesMiddleware",
    # Before all that answer with a sentence.
    "accounts.language.LanguageMiddleware",
    "chatproject.ops.odd_input.OddInputMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Before the view's check for a user: with TRUSTED_HEADER the proxy names one.
    "accounts.sso.trusted_header.TrustedHeaderMiddleware",
    # Every view requires a signed-in user unless accounts.access exempts it.
    "accounts.access.LoginRequiredMiddleware",
    # After it, since it uses the user that was loaded there.
    "accounts.appearance.AppearanceMiddleware",
    "accounts.consent.ConsentMiddleware",
    "chatproject.ops.staff_log.StaffLogMiddleware",
    # After it, so that the limits of pages are those of their user.
    "chatproject.ops.rate_limits.RateLimitMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "chatproject.ops.csp.CSPMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "chatproject.ops.context_processors.site",
                "billing.web.context_processors.balance",
                "chat.web.context_processors.shell",
            ],
        },
    },
]
FORM_RENDERER = "django.forms.renderers.TemplatesSetting"

YEAR = 365 * 24 * 60 * 60  # seconds
CENTURY = 36_500  # days; subtracting many more from today gives no date

# --- Postgres, the only source of truth -------------------------------------------------------

DATABASES: dict[str, dict[str, Any]] = {"default": env.database("DATABASE_URL")}
# Of TCP, in case the network is lost without a word; the options of DATABASE_URL have precedence. No
# setting of the session is used, which a pooler with transaction pooling would give to other clients:
# lib.db.limits keeps the limits of statements.
DATABASES["default"]["OPTIONS"] = {
    "connect_timeout": 3,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
    **DATABASES["default"]["OPTIONS"],
}
DATABASES["default"]["OPTIONS"]["pool"] = {
    "connection_class": limits.Connection,
    "min_size": 0,
    "max_size": env.integer("DB_POOL_SIZE", 16, least=2),
    "timeout": 5,  # seconds to wait for a free connection, and for an unreachable Postgres
    # Seconds of connection attempts, with exponential backoff, before the pool gives up until the
    # next caller. With the default of five minutes the pauses would grow to as long as Postgres was
    # unreachable, and the recovery would take as long again.
    "reconnect_timeout": 5,
}
# A call must not get a connection from the pool whose server has hung up.
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
# Behind a pooler with transaction pooling a cursor of the server would be lost with its transaction.
DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True
# Statements of lib.db.prepared are prepared at their first use in a connection, except behind a pooler
# that does not keep them (lib.db.pooler).
DB_PREPARE = env.flag("DB_PREPARE", default=True)
DATABASES["default"]["OPTIONS"]["prepare_threshold"] = 0 if DB_PREPARE else None

# Threads per process in which asynchronous code uses the database: see lib.db.
DB_THREADS = env.integer("DB_THREADS", 8, least=1)

# --- Redis: queue, run logs, channel layer, cache ---------------------------------------------

# The time limits are part of the URL, so that no client, of whatever library, waits without one.
REDIS_URL = env.redis("REDIS_URL")
if not REDIS_URL:
    raise ImproperlyConfigured(
        "REDIS_URL is not set. Write redis://host:6379/0, or use `make run`, which starts its own Valkey."
    )

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "chatproject.lib.pubsub.layer.PubSubChannelLayer",
        "CONFIG": {
            "hosts": env.servers("CHANNEL_LAYER_URLS") or [REDIS_URL],
            "prefix": "parley",
        },
    },
}

CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "cache",
    },
}

# Hours after which the texts of a call of the API are removed; what it cost stays.
API_KEEP_HOURS = env.integer("API_KEEP_HOURS", 24, least=1, most=24 * CENTURY)
# The longest time that a call of the API waits for a reply that is not streamed.
API_ANSWER_SECONDS = env.integer("API_ANSWER_SECONDS", 900, least=10)
# The longest time in which the body of a call of the API arrives.
API_BODY_SECONDS = env.integer("API_BODY_SECONDS", 120, least=1)
# Days after which a deleted chat is removed for good, with all of its text.
DELETED_CHAT_DAYS = env.integer("DELETED_CHAT_DAYS", 30, least=1, most=CENTURY)
# Days without a message after which chats are deleted and purged at once; 0: never.
RETENTION_DAYS = env.integer("RETENTION_DAYS", 0, most=CENTURY)
# Days after the request to delete an account in which it can be restored.
ACCOUNT_DELETION_DAYS = env.integer("ACCOUNT_DELETION_DAYS", 30, least=1, most=CENTURY)
RUN_SECONDS = env.integer("RUN_SECONDS", 600, least=10)  # time limit of one run
# The same of one insight into a document, with the repair of its answer.
INSIGHT_SECONDS = env.integer("INSIGHT_SECONDS", 120, least=10, most=900)
# Max attempts at a run: the runs of a dead worker are handed over to other workers.
RUN_ATTEMPTS = env.integer("RUN_ATTEMPTS", 3, least=1)
# Requests to the model that one reply with tools may need, and the tokens after which it makes no further one.
RUN_MAX_REQUESTS = env.integer("RUN_MAX_REQUESTS", 10, least=1, most=100)
RUN_MAX_TOKENS = env.integer("RUN_MAX_TOKENS", 20_000, least=1)
# Tokens of one tool's result that the model reads, and threads of a worker for tools that are plain functions.
TOOL_RESULT_TOKENS = env.integer("TOOL_RESULT_TOKENS", 4_000, least=100)
TOOL_THREADS = env.integer("TOOL_THREADS", 8, least=1)
# Seconds in which a user can allow or refuse a call of a tool; then it is not made.
TOOL_APPROVAL_SECONDS = env.integer("TOOL_APPROVAL_SECONDS", 24 * 60 * 60, least=10)
# A worker that renews no lease for this long counts as dead; it renews them three times in that time.
RUN_LEASE_SECONDS = env.integer("RUN_LEASE_SECONDS", 6, least=3)
RQ_QUEUES = {
    name: {
        "URL": REDIS_URL,
        "DEFAULT_TIMEOUT": timeout,
        "DEFAULT_RESULT_TTL": 600,
        # Seconds that staff can see a failed job: a day. RQ's own default is a year.
        "DEFAULT_FAILURE_TTL": 24 * 60 * 60,
        "SERIALIZER": "rq.serializers.JSONSerializer",
    }
    for name, timeout in {
        # The worker ends a run at RUN_SECONDS with an error for the user; RQ's limit is a safety net.
        "chat": RUN_SECONDS + 60,
        "billing": 120,
        "insights": INSIGHT_SECONDS + 120,  # with the choice of passages
        "index": 600,
        "low": 120,
    }.items()
}
RQ = {
    "WORKER_CLASS": "chatproject.lib.rq_asyncio.AsyncWorker",
    "COMMIT_MODE": "on_db_commit",
}
WORKER_CONCURRENCY = env.integer("WORKER_CONCURRENCY", 500, least=1)
# Imported by workers before their first job; importing the provider's library takes up to a second.
WORKER_IMPORTS = [
    "chat.generation.generate",
    "chatproject.lib.db.in_worker",
    "chatproject.ops.in_worker",
]
WORKER_MAX_MB = env.integer("WORKER_MAX_MB", 0)
WORKER_DRAIN_SECONDS = env.integer("WORKER_DRAIN_SECONDS", 25)

# --- The model provider -----------------------------------------------------------------------

# Set and empty it is refused (chatproject.checks): keys and prompts would be sent to OpenAI.
OPENAI_BASE_URL = (
    ""
    if env.is_empty("OPENAI_BASE_URL")
    else env.url("OPENAI_BASE_URL", "https://api.openai.com/v1")
)
OPENAI_API_KEY = env.key("OPENAI_API_KEY")
DEFAULT_MODEL = env.text("DEFAULT_MODEL", "gpt-4o-mini", most=100)
# The model that names chats after their first reply, by its name in the catalogue; the operator pays. Empty: none.
TITLE_MODEL = env.text("TITLE_MODEL", "", most=100)
# A server with the model multilingual-e5-small, which `create_catalogue` adds for documents.
EMBEDDINGS_BASE_URL = (
    "" if env.secret("EMBEDDINGS_BASE_URL") in ("", "none") else env.url("EMBEDDINGS_BASE_URL", "")
)
# The greatest size of a passage of a document that a search finds, in tokens; the embedding model may lower it.
DOCUMENT_CHUNK_TOKENS = env.integer("DOCUMENT_CHUNK_TOKENS", 800, least=64, most=8_000)
# Whether messages are checked by the moderation rules of the admin before their run, and the longest time for that.
MODERATION = env.flag("MODERATION", default=False)
MODERATION_SECONDS = env.integer("MODERATION_SECONDS", 3, least=1, most=5)
# Whether users may share the assistants that they make with all other users of the site.
# Sharing of chats (chat/conversations/sharing.py): with named users, and by public links.
SHARE_WITH_USERS = env.flag("SHARE_WITH_USERS", default=False)
SHARE_BY_LINK = env.flag("SHARE_BY_LINK", default=False)
ASSISTANT_SHARING = env.flag("ASSISTANT_SHARING", default=False)
# Micro-credits per million tokens: input, cached input, output.
DEFAULT_MODEL_PRICE = tuple(
    int(price * 1_000_000) for price in env.decimals("DEFAULT_MODEL_PRICE", "15 7.5 60", count=3)
)
DEFAULT_MODEL_CONTEXT = env.integer("DEFAULT_MODEL_CONTEXT", 128_000, least=512)  # tokens

# --- Money ------------------------------------------------------------------------------------

# Off, for development: everything is free and nothing is recorded. On: a message to a model without
# a price, or from a user without credits, is refused.
BILLING = env.flag("BILLING", default=True)
SIGNUP_CREDITS = int(env.decimal("SIGNUP_CREDITS", "100") * 1_000_000)  # micro-credits
# Whether accounts have them at once. Otherwise they come with a verified address, or by staff.
ALLOW_UNVERIFIED_CREDITS = env.flag("ALLOW_UNVERIFIED_CREDITS", default=False)
MIN_REPLY_TOKENS = env.integer("MIN_REPLY_TOKENS", 256, least=1)  # the balance must cover them
# Whether runs that fail on our side are charged for the text delivered before.
BILL_FAILED_PARTIAL = env.flag("BILL_FAILED_PARTIAL", default=True)
STAFF_PAY = env.flag("STAFF_PAY", default=False)  # off: their runs are the operator's cost
# Max micro-credits that one member of staff may give to users per day; 0: no limit.
STAFF_DAILY_CREDITS = int(env.decimal("STAFF_DAILY_CREDITS", "0") * 1_000_000)
# Micro-credits above which a gift must be confirmed; 0: none must.
STAFF_CONFIRM_CREDITS = int(env.decimal("STAFF_CONFIRM_CREDITS", "10000") * 1_000_000)
# A file in the format of LiteLLM's list, for the discovery of models; empty: no list.
PRICE_LIST = env.file("PRICE_LIST")
CREDIT_USD = env.decimal("CREDIT_USD", "0.01", above=0)  # value of a credit, to import prices

# --- Payment providers: each is enabled by its key, see docs/payments.md -----------------------

CURRENCIES = [word.upper() for word in env.words("CURRENCIES", "USD")]  # of packages
if not all(len(word) == 3 and word.isalpha() for word in CURRENCIES):
    raise ImproperlyConfigured("CURRENCIES: write codes of three letters, for example USD,EUR.")
STRIPE_SECRET_KEY = env.key("STRIPE_SECRET_KEY")
# Several while one is being replaced: deliveries in flight are signed with the old one.
STRIPE_WEBHOOK_SECRETS = env.secrets("STRIPE_WEBHOOK_SECRETS")
STRIPE_LIVEMODE = env.flag(
    "STRIPE_LIVEMODE", default=STRIPE_SECRET_KEY.startswith(("sk_live_", "rk_live_"))
)
STRIPE_TAX = env.flag("STRIPE_TAX", default=False)
STRIPE_API_BASE = env.url("STRIPE_API_BASE", "https://api.stripe.com").rstrip("/")
STRIPE_CHECKOUT_ORIGIN = env.origin("STRIPE_CHECKOUT_ORIGIN", "https://checkout.stripe.com")
RAZORPAY_KEY_ID = env.key("RAZORPAY_KEY_ID")
RAZORPAY_KEY_SECRET = env.key("RAZORPAY_KEY_SECRET")
RAZORPAY_WEBHOOK_SECRETS = env.secrets("RAZORPAY_WEBHOOK_SECRETS")
# Contained in prices that are paid with Razorpay, which computes no tax.
RAZORPAY_TAX_PERCENT = env.decimal("RAZORPAY_TAX_PERCENT", "0")
RAZORPAY_API_BASE = env.url("RAZORPAY_API_BASE", "https://api.razorpay.com").rstrip("/")
if bool(RAZORPAY_KEY_ID) != bool(RAZORPAY_KEY_SECRET):
    raise ImproperlyConfigured("Set both RAZORPAY_KEY_ID and RAZORPAY_KEY_SECRET, or neither.")
# Allowed targets of our forms, by the CSP: browsers apply it to a form's redirects as well.
PAYMENT_ORIGINS = [
    origin.rstrip("/")
    for origin, is_on in (
        (STRIPE_CHECKOUT_ORIGIN, STRIPE_SECRET_KEY),
        (RAZORPAY_API_BASE, RAZORPAY_KEY_ID),
    )
    if is_on
]

# The sandbox bank, a page of this site, with which every user can buy credits for free.
PAYMENTS_SANDBOX = env.flag("PAYMENTS_SANDBOX", default=DEBUG)
if PAYMENTS_SANDBOX and not DEBUG:
    raise ImproperlyConfigured(
        "PAYMENTS_SANDBOX is for development: its users buy credits for free. Remove it, or also set"
        " DEBUG=1 on a machine that others cannot reach."
    )

# Buyers may request a refund within so many days (0: never), while at least so many percent of the
# purchase are unused.
REFUND_DAYS = env.integer("REFUND_DAYS", 14, most=CENTURY)
REFUND_UNUSED_PERCENT = env.integer("REFUND_UNUSED_PERCENT", 90, least=1)
# Whether users may enable automatic purchases of a package when their balance is low.
AUTO_TOP_UP = env.flag("AUTO_TOP_UP", default=False)
# Recipients of alerts about payments that do not match, disputes and refunds; empty: only the log.
BILLING_ALERT_EMAIL = env.addresses("BILLING_ALERT_EMAIL")

# The seller on receipts; lines of the address are separated by commas.
SELLER_NAME = env.text("SELLER_NAME", SITE_NAME)
SELLER_ADDRESS = env.words("SELLER_ADDRESS")
SELLER_TAX_ID = env.text("SELLER_TAX_ID")

# --- Limits -----------------------------------------------------------------------------------

TEXT_MAX_CHARACTERS = 20_000  # of one message
# Max replies of one user that are queued or being made. Further ones are throttled until one of them
# ends, at most USER_QUEUE_LIMIT; beyond that the user's messages are refused.
USER_CONCURRENCY = env.integer("USER_CONCURRENCY", 5, least=1)
USER_QUEUE_LIMIT = env.integer("USER_QUEUE_LIMIT", 100)
QUEUE_LIMIT = env.integer("QUEUE_LIMIT", 2_000, least=1)  # queued runs before messages are refused
DATA_UPLOAD_MAX_MEMORY_SIZE = 1_000_000  # bytes of a form

# The named limits (docs/operations/limits.md): of each user, else of each client address. All are
# counted in Redis, except those of sockets, which each web process counts for itself.
RATE_LIMITS = {
    "messages": env.limit("LIMIT_MESSAGES", "30/minute"),
    "estimates": env.limit("LIMIT_ESTIMATES", "120/minute"),
    "reports": env.limit("LIMIT_REPORTS", "20/hour"),
    "searches": env.limit("LIMIT_SEARCHES", "240/minute"),
    "orders": env.limit("LIMIT_ORDERS", "120/minute"),
    "checkouts": env.limit("LIMIT_CHECKOUTS", "20/minute"),
    "receipts": env.limit("LIMIT_RECEIPTS", "20/minute"),
    "assistants": env.limit("LIMIT_ASSISTANTS", "60/hour"),
    "exports": env.limit("LIMIT_EXPORTS", "10/minute"),
    "full_exports": env.limit("LIMIT_FULL_EXPORTS", "5/hour"),
    "uploads": env.limit("LIMIT_UPLOADS", "100/10minute"),
    "imports": env.limit("LIMIT_IMPORTS", "20/hour"),
    "documents": env.limit("LIMIT_DOCUMENTS", "60/hour"),
    "insights": env.limit("LIMIT_INSIGHTS", "60/hour"),  # bought, and tried again
    "devices": env.limit("LIMIT_DEVICES", "20/hour"),
    "pictures": env.limit("LIMIT_PICTURES", "30/minute"),  # of charts, as PNG
    "copies": env.limit("LIMIT_COPIES", "60/hour"),
    # Pages that the tools of a user read, and searches of the web.
    "web_fetches": env.limit("LIMIT_WEB_FETCHES", "120/hour"),
    "web_searches": env.limit("LIMIT_WEB_SEARCHES", "60/hour"),
    "notes": env.limit("LIMIT_NOTES", "120/hour"),
    "projects": env.limit("LIMIT_PROJECTS", "60/hour"),
    "invitations": env.limit("LIMIT_INVITATIONS", "60/minute"),
    # Mails to staff that accounts wait for approval, on the whole site.
    "approval_notices": env.limit("LIMIT_APPROVAL_NOTICES", "1/10minute"),
    "api_keys": env.limit("LIMIT_API_KEYS", "20/hour"),
    "api_requests": env.limit("LIMIT_API_REQUESTS", "300/minute"),
    # Changes of a user's webhooks, tests and resends; attempts to deliver messages to a user's webhooks.
    "webhooks": env.limit("LIMIT_WEBHOOKS", "60/hour"),
    "webhook_deliveries": env.limit("LIMIT_WEBHOOK_DELIVERIES", "5000/hour"),
    # Sharing of chats: shares and links of a user; mails about shares by one user and to one address; pages
    # and files of public links, by address.
    "shares": env.limit("LIMIT_SHARES", "60/hour"),
    "share_mails": env.limit("LIMIT_SHARE_MAILS", "20/hour; 60/day"),
    "share_mails_address": env.limit("LIMIT_SHARE_MAILS_ADDRESS", "5/day"),
    "public_pages": env.limit("LIMIT_PUBLIC_PAGES", "120/minute"),
    "public_files": env.limit("LIMIT_PUBLIC_FILES", "600/minute"),
    "link_reports": env.limit("LIMIT_LINK_REPORTS", "10/hour"),
    "promo_codes": env.limit("LIMIT_PROMO_CODES", "10/hour"),
    # Signing in (accounts/sign_in_limits.py): wrong passwords from one address for one account; from
    # one address for all accounts; the same with the admin as destination; for one account from all
    # addresses; for one account from a known browser.
    "sign_in": env.limit("LIMIT_SIGN_IN", "5/5minute; 20/hour", fails_closed=True),
    "sign_in_address": env.limit("LIMIT_SIGN_IN_ADDRESS", "50/5minute", fails_closed=True),
    "admin_sign_in": env.limit("LIMIT_ADMIN_SIGN_IN", "10/5minute", fails_closed=True),
    "sign_in_account": env.limit("LIMIT_SIGN_IN_ACCOUNT", "100/hour", fails_closed=True),
    "sign_in_known": env.limit("LIMIT_SIGN_IN_KNOWN", "10/hour; 30/day", fails_closed=True),
    "sign_up": env.limit("LIMIT_SIGN_UP", "20/minute; 200/day", fails_closed=True),
    # Mails with a link to a new password: from one address for one account, from one address, and
    # for one account. The last is shorter than PASSWORD_RESET_TIMEOUT: its owner has a valid link.
    "password_reset": env.limit("LIMIT_PASSWORD_RESET", "3/10minute", fails_closed=True),
    "password_reset_address": env.limit(
        "LIMIT_PASSWORD_RESET_ADDRESS", "20/minute", fails_closed=True
    ),
    "password_reset_account": env.limit(
        "LIMIT_PASSWORD_RESET_ACCOUNT", "10/30minute", fails_closed=True
    ),
    # The present password, asked for by a page.
    "password_checks": env.limit("LIMIT_PASSWORD_CHECKS", "10/5minute; 60/day", fails_closed=True),
    # Codes of the second factor for one account, and sign-ins by passkey from one address.
    "codes": env.limit("LIMIT_CODES", "10/5minute; 60/day", fails_closed=True),
    "passkeys": env.limit("LIMIT_PASSKEYS", "30/5minute", fails_closed=True),
    # Sign-ins at identity providers: the way there and back, from one address or by one user.
    "provider_sign_ins": env.limit("LIMIT_PROVIDER_SIGN_INS", "60/5minute", fails_closed=True),
    "email_changes": env.limit("LIMIT_EMAIL_CHANGES", "10/10minute", fails_closed=True),
    "confirmation_mails": env.limit("LIMIT_CONFIRMATION_MAILS", "1/3minute", fails_closed=True),
    "handshakes": env.limit("LIMIT_HANDSHAKES", "300/minute"),
    "sockets": env.limit("LIMIT_SOCKETS", "50"),
    "streams": env.limit("LIMIT_STREAMS", "200"),
    "frames": env.limit("LIMIT_FRAMES", "600/minute"),
    "resumes": env.limit("LIMIT_RESUMES", "120/minute"),
}

# --- Accounts ---------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
# The first hashes; the others check older hashes, which a sign-in replaces.
PASSWORD_HASHERS = [
    "accounts.passwords.Hasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "chat:new"
LOGOUT_REDIRECT_URL = "account_login"
# Permission to create an account (accounts/joining.py). SIGNUP_OPEN=0, of earlier releases, closes sign-up.
SIGNUP = env.choice(
    "SIGNUP",
    "OPEN" if env.flag("SIGNUP_OPEN", default=True) else "CLOSED",
    ("OPEN", "APPROVAL", "INVITATION", "CLOSED"),
).lower()
INVITATION_MAILS_PER_MINUTE = env.integer("INVITATION_MAILS_PER_MINUTE", 60, least=1)
# Adding, removing and making primary an address ask for the password, at most every five minutes.
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_EMAIL_NOTIFICATIONS = True  # of changes to the address that the account had before
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "mandatory" if env.flag("VERIFY_EMAIL", default=False) else "optional"
ACCOUNT_EMAIL_SUBJECT_PREFIX = f"{SITE_NAME}: "
ACCOUNT_DEFAULT_HTTP_PROTOCOL = "https" if HTTPS else "http"
ACCOUNT_LOGIN_ON_PASSWORD_RESET = True
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_LOGOUT_ON_PASSWORD_CHANGE = False
PASSWORD_RESET_TIMEOUT = 60 * 60
ACCOUNT_ADAPTER = "accounts.adapter.AccountAdapter"
ACCOUNT_FORMS = {
    "add_email": "accounts.forms.AddEmailForm",
    "change_password": "accounts.forms.ChangePasswordForm",
    "login": "accounts.forms.LoginForm",
    "reset_password": "accounts.forms.ResetPasswordForm",
    "reset_password_from_key": "accounts.forms.ResetPasswordKeyForm",
    "signup": "accounts.forms.SignupForm",
}
# RATE_LIMITS replaces allauth's own limits. Its code counts one of them, where it sends the mail.
ACCOUNT_RATE_LIMITS = dict.fromkeys(
    (
        "change_password",
        "change_phone",
        "login",
        "login_failed",
        "manage_email",
        "reauthenticate",
        "request_login_code",
        "reset_password",
        "reset_password_from_key",
        "signup",
        "verify_phone",
    )
) | {
    "confirm_email": ",".join(
        f"{amount}/{seconds}s/key" for amount, seconds in RATE_LIMITS["confirmation_mails"].rates
    )
}

# Second factors (accounts/mfa).
STAFF_TWO_FACTOR = env.flag("STAFF_TWO_FACTOR", default=False)  # whether staff must have one
MFA_ADAPTER = "accounts.mfa.factors.FactorAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_TOTP_TOLERANCE = 1  # steps of 30 seconds that a device's clock may be wrong
MFA_RECOVERY_CODES_SHOW_ONCE = True
# Further addresses may be unconfirmed: a link to a new password removes them. accounts.mfa.pages requires
# that the primary one is confirmed.
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_RATE_LIMITS = {"webauthn_login": None}  # RATE_LIMITS has it
MFA_FORMS = {
    "activate_totp": "accounts.mfa.forms.ActivateForm",
    "add_webauthn": "accounts.mfa.forms.AddPasskeyForm",
    "authenticate": "accounts.mfa.forms.CodeForm",
    "authenticate_webauthn": "accounts.mfa.forms.PasskeyForm",
    "login_webauthn": "accounts.mfa.forms.SignInPasskeyForm",
    "reauthenticate": "accounts.mfa.forms.ConfirmCodeForm",
    "reauthenticate_webauthn": "accounts.mfa.forms.ConfirmPasskeyForm",
}

# Sign-in at identity providers (accounts/sso, docs/operations/single_sign_on.md): each by its client id.
OIDC_ISSUER = (
    env.url("OIDC_ISSUER", "").rstrip("/").removesuffix("/.well-known/openid-configuration")
)
OIDC_CLIENT_ID = env.text("OIDC_CLIENT_ID", most=200)
OIDC_CLIENT_SECRET = env.secret("OIDC_CLIENT_SECRET")
OIDC_NAME = env.text("OIDC_NAME", "OpenID Connect", most=40)  # on its button
OIDC_SCOPES = env.words("OIDC_SCOPES")  # besides openid, profile and email
# Whether addresses count as verified although the issuer does not send `email_verified`.
OIDC_TRUST_EMAIL = env.flag("OIDC_TRUST_EMAIL", default=False)
OIDC_GROUPS_CLAIM = env.text("OIDC_GROUPS_CLAIM")
OIDC_ALLOWED_GROUPS = env.words("OIDC_ALLOWED_GROUPS")
OIDC_GROUP_MAP = env.pairs("OIDC_GROUP_MAP")  # from the issuer's groups to the site's
if bool(OIDC_ISSUER) != bool(OIDC_CLIENT_ID):
    raise ImproperlyConfigured("Set both OIDC_ISSUER and OIDC_CLIENT_ID, or neither.")
if (OIDC_ALLOWED_GROUPS or OIDC_GROUP_MAP) and not OIDC_GROUPS_CLAIM:
    raise ImproperlyConfigured(
        "OIDC_ALLOWED_GROUPS and OIDC_GROUP_MAP require OIDC_GROUPS_CLAIM, the claim that has a"
        " person's groups, for example OIDC_GROUPS_CLAIM=groups."
    )
GOOGLE_ISSUER = "https://accounts.google.com"
GOOGLE_CLIENT_ID = env.text("GOOGLE_CLIENT_ID", most=200)
GOOGLE_CLIENT_SECRET = env.secret("GOOGLE_CLIENT_SECRET")
GITHUB_URL = env.origin("GITHUB_URL", "https://github.com")  # of GitHub Enterprise Server: its own
GITHUB_CLIENT_ID = env.text("GITHUB_CLIENT_ID", most=200)
GITHUB_CLIENT_SECRET = env.secret("GITHUB_CLIENT_SECRET")
if bool(GOOGLE_CLIENT_ID) != bool(GOOGLE_CLIENT_SECRET):
    raise ImproperlyConfigured("Set both GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET, or neither.")
if bool(GITHUB_CLIENT_ID) != bool(GITHUB_CLIENT_SECRET):
    raise ImproperlyConfigured("Set both GITHUB_CLIENT_ID and GITHUB_CLIENT_SECRET, or neither.")
SOCIALACCOUNT_ADAPTER = "accounts.sso.adapter.SocialAdapter"
SOCIALACCOUNT_STORE_TOKENS = False
# An account whose address both sides have verified is connected at the first sign-in.
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True

# Sign-in by the header of an authenticating proxy (accounts/sso/trusted_header.py), and the proxy's addresses.
TRUSTED_HEADER = env.header("TRUSTED_HEADER")
TRUSTED_HEADER_PROXIES = env.networks("TRUSTED_HEADER_PROXIES")
TRUSTED_HEADER_SIGN_OUT_URL = env.target("TRUSTED_HEADER_SIGN_OUT_URL")
if bool(TRUSTED_HEADER) != bool(TRUSTED_HEADER_PROXIES):
    raise ImproperlyConfigured(
        "Set both TRUSTED_HEADER and TRUSTED_HEADER_PROXIES, or neither: without the addresses of the"
        " proxies any visitor could write the header."
    )

# Whether users sign in and up with passwords and passkeys of this site.
PASSWORD_SIGN_IN = env.flag("PASSWORD_SIGN_IN", default=True)
if not (
    PASSWORD_SIGN_IN or OIDC_CLIENT_ID or GOOGLE_CLIENT_ID or GITHUB_CLIENT_ID or TRUSTED_HEADER
):
    raise ImproperlyConfigured(
        "PASSWORD_SIGN_IN=0 requires another way to sign in: set OIDC_ISSUER, GOOGLE_CLIENT_ID,"
        " GITHUB_CLIENT_ID or TRUSTED_HEADER."
    )

# Without it the site sends no mail: staff set passwords and pass on links.
MAIL_TRANSPORT = ""  # the backend with which the outbox sends
EMAIL_FILE_PATH = ""  # the folder of a backend that writes files
globals().update(env.mail("EMAIL_URL", "console://" if DEBUG else ""))
DEFAULT_FROM_EMAIL = env.sender("DEFAULT_FROM_EMAIL", "parley@localhost")
SERVER_EMAIL = DEFAULT_FROM_EMAIL

# --- Sessions and headers ---------------------------------------------------------------------

# In Postgres (Redis that lost its data must not sign out all users), and announced when it ends.
SESSION_ENGINE = "accounts.session_store"
SESSION_COOKIE_SECURE = HTTPS
SESSION_COOKIE_AGE = 60 * 60 * 24 * 30
CSRF_COOKIE_SECURE = HTTPS
CSRF_TRUSTED_ORIGINS = env.origins("CSRF_TRUSTED_ORIGINS")
CSRF_FAILURE_VIEW = "chatproject.ops.error_pages.csrf_failure"
SECURE_SSL_REDIRECT = HTTPS
HSTS_SECONDS = env.integer("HSTS_SECONDS", YEAR)
SECURE_HSTS_SECONDS = HSTS_SECONDS if HTTPS else 0
# Both concern hosts besides this one, and browsers and their lists keep them for months.
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.flag("HSTS_SUBDOMAINS", default=False)
SECURE_HSTS_PRELOAD = env.flag("HSTS_PRELOAD", default=False)
if SECURE_HSTS_PRELOAD and not (SECURE_HSTS_INCLUDE_SUBDOMAINS and SECURE_HSTS_SECONDS >= YEAR):
    raise ImproperlyConfigured(
        f"HSTS_PRELOAD=1 requires HSTS_SUBDOMAINS=1 and HSTS_SECONDS of at least {YEAR}, with HTTPS=1."
    )
# Django's deployment check asks for both.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
if TRUST_PROXY:  # lib.server.proxies has left one value there
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# The sign-out is a form, and browsers apply the CSP to its redirect as well.
SIGN_OUT_ORIGINS = (
    ["/".join(TRUSTED_HEADER_SIGN_OUT_URL.split("/")[:3])]
    if TRUSTED_HEADER_SIGN_OUT_URL.startswith("http")
    else []
)
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "frame-src": [SELF],  # previews, each with a policy of its own: chat/web/views/previews.py
        "manifest-src": [SELF],
        "form-action": [SELF, *PAYMENT_ORIGINS, *SIGN_OUT_ORIGINS],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    },
}

# --- Static files, metrics, language, log ------------------------------------------------------

STATIC_URL = "/static/"
STATIC_ROOT = Path(env.text("STATIC_ROOT") or BASE_DIR / "staticfiles")
STATICFILES_DIRS = [BASE_DIR / "static"]
# Hashed names, which browsers may cache for ever; requires `manage.py collectstatic` before a start.
STATIC_MANIFEST = env.flag("STATIC_MANIFEST", default=not DEBUG)
WHITENOISE_USE_FINDERS = not STATIC_MANIFEST  # serves the sources
WHITENOISE_ROOT = BASE_DIR / "chatproject" / "ops" / "root_files"  # /favicon.ico, /robots.txt
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "chatproject.lib.staticfiles.ManifestStorage"
        if STATIC_MANIFEST
        else "django.contrib.staticfiles.storage.StaticFilesStorage",
    },
}

# Uploads and other files of users; all processes share the folder.
PRIVATE_ROOT = env.folder("PRIVATE_ROOT", BASE_DIR / ".data" / "private")
ATTACHMENT_MAX_BYTES = env.integer("ATTACHMENT_MAX_MB", 20, least=1, most=100) * 10**6
ATTACHMENT_USER_BYTES = env.integer("ATTACHMENT_USER_MB", 1_000, least=1) * 10**6
ATTACHMENTS_PER_MESSAGE = 10
# A longer text that is pasted becomes a file of the message; 0: none does.
PASTE_CHARACTERS = env.integer("PASTE_CHARACTERS", 5_000)
# Documents (docs/documents.md): of an upload; of a PDF; of the sandboxed process that reads one.
DOCUMENT_MAX_BYTES = env.integer("DOCUMENT_MAX_MB", 25, least=1, most=200) * 10**6
DOCUMENT_MAX_PAGES = env.integer("DOCUMENT_MAX_PAGES", 2_000, least=1)
DOCUMENT_SECONDS = env.integer("DOCUMENT_SECONDS", 300, least=10, most=800)
DOCUMENT_MEMORY_BYTES = env.integer("DOCUMENT_MEMORY_MB", 300, least=100) * 10**6
# Tables of uploaded CSV and Excel files (docs/documents.md), and queries over them.
TABLE_MAX_ROWS = env.integer("TABLE_MAX_ROWS", 1_000_000, least=1, most=10_000_000)
TABLE_MAX_COLUMNS = env.integer("TABLE_MAX_COLUMNS", 1_000, least=1, most=5_000)
TABLE_BUILD_SECONDS = env.integer("TABLE_BUILD_SECONDS", 180, least=1, most=800)
TABLE_QUERY_SECONDS = env.integer("TABLE_QUERY_SECONDS", 10, least=1, most=300)
TABLE_QUERY_ROWS = env.integer("TABLE_QUERY_ROWS", 10_000, least=50, most=100_000)
IMPORT_MAX_BYTES = 100_000_000  # of an uploaded file of chats
# Text of imported chats of one user in 24 hours, which the database stores and indexes.
IMPORT_DAY_BYTES = env.integer("IMPORT_DAY_MB", 500, least=1) * 1_000_000

# /metrics answers requests with the token, and those from the networks; without both, none.
METRICS_TOKEN = env.key("METRICS_TOKEN")
if METRICS_TOKEN and len(METRICS_TOKEN) < 16:
    raise ImproperlyConfigured(
        "METRICS_TOKEN is too short: write at least 16 random characters, for example from"
        " `python -c 'import secrets; print(secrets.token_urlsafe(32))'`."
    )
METRICS_NETWORKS = env.networks("METRICS_NETWORKS")

# Alerts (chatproject/ops/alerts.py), for sites without Prometheus.
ALERT_EMAIL = env.addresses("ALERT_EMAIL")
ALERT_WEBHOOK_URL = env.url("ALERT_WEBHOOK_URL", "")  # a secret, by which anyone may post

LANGUAGE_CODE = "en"
# The languages of the interface, each in its own words; docs/translations.md.
LANGUAGES = [("en", "English"), ("de", "Deutsch"), ("es", "Español"), ("ar", "العربية")]
LANGUAGE_COOKIE_NAME = "language"
FORMAT_MODULE_PATH = "chatproject.formats"
TIME_ZONE = env.zone("TIME_ZONE", "UTC")
USE_I18N = True
USE_TZ = True

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMAT = env.choice("LOG_FORMAT", "TEXT", ("TEXT", "JSON")).lower()
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {
            "()": "chatproject.lib.outages.OutageFormatter",
            "format": "{asctime} {levelname} {name}: {message}",
            "style": "{",
        },
        "json": {"()": "chatproject.lib.log_json.JSONFormatter"},
    },
    "filters": {"outages": {"()": "chatproject.lib.outages.OutageFilter"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": LOG_FORMAT,
            "filters": ["outages"],
        },
    },
    "root": {"handlers": ["stderr"], "level": env.choice("LOG_LEVEL", "INFO", LOG_LEVELS)},
    "loggers": {
        # Without the handlers that Django gives them, which would not scrub.
        "django": {"handlers": [], "level": "INFO"},
        "django.server": {"handlers": [], "level": "INFO", "propagate": True},
        # One line per job, per request to a provider and per table of a font would hide the rest.
        "rq": {"level": "WARNING"},
        "httpx2": {"level": "WARNING"},
        "openai": {"level": "WARNING"},  # its debug lines have prompts and headers
        "stripe": {"level": "WARNING"},
        "fontTools": {"level": "WARNING"},
    },
}

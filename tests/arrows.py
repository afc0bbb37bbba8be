"""Which room may import which: `tests/test_architecture.py` keeps to it."""

ROOMS = ("app", "routers", "policies")
EVERYTHING = (*ROOMS,)
WORDS = ("app.types", "app.errors", "app.reasons")
# what the file says, and what is known of prompts
FLEET = (
    *("app.catalog", "app.tariffs", "app.confidence", "app.sandbox"),
    *("app.profile", "app.prompt_features"),
)
CHOSEN = (*WORDS, "app.settings", "app.catalog")
MONEY = (*WORDS, "app.catalog", "app.tariffs", "app.bill", "app.budget")
TOOLS = (*WORDS, "app.nets", "app.estimates", "app.prompt_files")
ARROWS: dict[str, tuple[str, ...]] = {  # a room, and the rooms it may import; longest name wins
    "app.reasons": (),
    "app.types": ("app.reasons",),
    "app.errors": (),
    "app.settings": WORDS,
    "app.tariffs": ("app.types",),
    "app.confidence": ("app.types",),
    "app.prompt_features": ("app.types",),
    "app.profile": ("app.types", "app.prompt_features"),
    "app.sandbox": ("app.errors", "app.sandbox"),
    "app.catalog": (*WORDS, *FLEET),
    "app.telemetry": (*WORDS, "app.trail", "app.telemetry"),
    "app.storage": (*WORDS, "app.storage"),
    "app.accounts": (*MONEY, "app.storage", "app.accounts"),
    "app.nets": ("app.nets",),
    "app.vllm_plugins.asks": (),
    "app.vllm_plugins": ("app.nets", "app.vllm_plugins"),
    "app.engines": (
        *WORDS,
        "app.catalog",
        "app.telemetry",
        "app.nets",
        "app.vllm_plugins.asks",
        "app.engines",
    ),
    "app.exposure": (*WORDS, "app.catalog"),
    "app.trail": WORDS,
    "app.bill": (*WORDS, "app.catalog"),
    "app.budget": (*WORDS, "app.catalog", "app.bill", "app.exposure", "app.trail"),
    "policies": (*WORDS, *FLEET, "policies"),
    "app.choices": (*WORDS, "app.budget", "policies"),
    "app.orders": (*WORDS, "app.catalog", "app.budget", "policies"),
    "app.explaining": (*MONEY, "app.choices", "app.orders", "app.trail", "policies"),
    "app.gateway": (*MONEY, "app.choices", "app.explaining", "app.orders", "app.trail", "policies"),
    "routers": (
        *MONEY,
        "app.accounts",
        "app.storage.records",
        "app.gateway",
        "app.telemetry",
        "routers",
    ),
    "app.downloads": (*WORDS, "app.catalog"),
    "app.terminal": WORDS,
    "app.connections": WORDS,
    "app.server": (*CHOSEN, "app.connections", "app.factory", "app.telemetry", "app.workers"),
    "app.workers": (),
    "app.serving": (*CHOSEN, "app.sandbox", "app.downloads", "app.engines", "policies"),
    "app.prompt_files": (),
    "app.estimates": (),
    "app.training": (*TOOLS, "app.engines.embedded", "app.training"),
    "app.training.confidence": (*TOOLS, "app.confidence", "app.bench", "app.training"),
    "app.bench": (*TOOLS, *FLEET, "app.engines", "app.budget", "app.gateway", "app.bench"),
    "app.bench.calibrate": (*TOOLS, *FLEET, "app.bench", "policies"),
    "app.replay": (*WORDS, "app.estimates", "app.prompt_files", "app.replay", "policies.plans"),
    "app.factory": EVERYTHING,
    "app.cli": EVERYTHING,
    "app.till": EVERYTHING,
    "app.telling": EVERYTHING,
    "app.replaying": EVERYTHING,
    "app.train": EVERYTHING,
    "app.measure": EVERYTHING,
    "app.comparing": EVERYTHING,
    "app.calibrating": EVERYTHING,
}

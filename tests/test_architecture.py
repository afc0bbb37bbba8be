"""Who may import whom, how long a file may grow, and what only one room may do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.arrows import ARROWS, ROOMS

ROOT = Path(__file__).parent.parent
BEHIND_THE_CLI = ("app.bench", "app.training")  # imported by nobody else, and there only lazily
COMMANDS = ("app.cli", "app.calibrating", "app.comparing", "app.measure", "app.train")
BARE = ("weights", "linear", "model", "kv_cache", "sampling")  # run where pydantic is not
BANNED = {"utils", "common", "helpers", "misc", "manager", "handler", "service", "core"}
MAY_PRINT = (
    "app.cli",
    "app.till",
    "app.replaying",
    "app.telling",
    "app.training.__main__",
    "app.terminal",
    "app.server",
    "app.bench",
    "app.vllm_plugins.launch",
)
# The plugins run in vLLM's processes: the environment is all that reaches them from the launcher.
MAY_READ_THE_ENVIRONMENT = ("app.settings", "app.vllm_plugins")
METRICS = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
FILE, FUNCTION = 400, 80  # lines


@dataclass(frozen=True)
class Module:
    name: str
    source: str
    package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def read(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[-1] == "__init__"
    return Module(".".join(parts[: len(parts) - package]), path.read_text("utf-8"), package)


MODULES = [read(path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
NAMES = frozenset(module.name for module in MODULES)
TESTS = [read(path) for path in sorted((ROOT / "tests").rglob("*.py"))]


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def imports(module: Module, known: frozenset[str], lazy: bool = True) -> set[str]:
    """The modules this one imports, ours and others'; `lazy`: those in functions too."""
    found = set[str]()
    for node in ast.walk(module.tree) if lazy else at_import(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = origin(module, node)
            # `from app import catalog` imports the module app.catalog.
            inner = {f"{base}.{alias.name}" for alias in node.names} & known
            found |= inner or {base}
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant):
                found.add(str(argument.value))
    return found


def origin(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".") + ["__init__"] * module.package
    return ".".join([*parts[: -node.level], *filter(None, [node.module])])


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no function's body, and nothing for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from at_import(node)


def called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def wrong_arrows(module: Module, known: frozenset[str]) -> Iterator[str]:
    ours = {name for name in imports(module, known) if within(name, ROOMS) and name != "app"}
    room = max((room for room in ARROWS if within(module.name, (room,))), key=len, default=None)
    if room is None:
        if ours or not module.package:
            yield f"{module.name} has no room in ARROWS"
        return
    for name in sorted(ours):
        if not within(name, ARROWS[room]):
            yield f"{module.name} imports {name}, which {room} may not"
        elif within(name, BEHIND_THE_CLI) and not within(module.name, BEHIND_THE_CLI):
            early = name in imports(module, known, lazy=False)
            if module.name not in COMMANDS or early:
                yield f"{module.name} imports {name}: only the CLI may, inside a function"


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths that lead back to where they began."""
    found: list[list[str]] = []
    done = set[str]()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def closure(name: str, modules: dict[str, Module]) -> set[str]:
    """All that importing this module imports, the packages around it included."""
    seen, rest = set[str](), [name]
    while rest:
        parts = rest.pop().split(".")
        for name in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            if name not in seen:
                seen.add(name)
                if name in modules:
                    rest += imports(modules[name], frozenset(modules), lazy=False)
    return seen


def reads_environment(module: Module) -> bool:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
            if names & {"environ", "environb", "getenv"}:
                return True
    return False


def defines_metrics(module: Module) -> bool:
    foreign = set[str]()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client"):
            foreign |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opentelemetry"):
            return True
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "prometheus_client":
            foreign.add(node.attr)
    return bool(foreign & METRICS)


def prints(module: Module) -> bool:
    nodes = ast.walk(module.tree)
    return any(isinstance(n, ast.Call) and ast.unparse(n.func) == "print" for n in nodes)


def long_functions(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION:
                yield f"{module.name}.{node.name} has {lines} lines"


def opens_with_a_sentence(module: Module) -> bool:
    first = (ast.get_docstring(module.tree) or "").partition("\n\n")[0]
    return re.search(r"[.:]$", first) is not None and not re.search(r"[.!?]\s+[A-Z]", first)


def by_name(module: Module) -> str:
    return module.name


each_module = pytest.mark.parametrize("module", MODULES, ids=by_name)


@each_module
def test_imports_only_the_rooms_below(module: Module) -> None:
    assert list(wrong_arrows(module, NAMES)) == []


def test_no_module_imports_itself_by_a_detour() -> None:
    assert cycles({m.name: imports(m, NAMES, lazy=False) & NAMES for m in MODULES}) == []


def test_the_factory_brings_in_no_torch() -> None:
    program = "import app.factory, sys; print(*{'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("name", BARE)
def test_model_code_runs_on_a_bare_machine(name: str) -> None:
    modules = {module.name: module for module in MODULES}
    bare = f"app.engines.embedded.{name}"
    assert bare in NAMES
    needs = closure(bare, modules)
    assert not {need for need in needs if within(need, ("pydantic", "pydantic_settings"))}
    assert not needs & {"app.settings", "app.catalog"}


@each_module
def test_only_settings_read_the_environment(module: Module) -> None:
    assert within(module.name, MAY_READ_THE_ENVIRONMENT) or not reads_environment(module)


@each_module
def test_only_telemetry_defines_metrics(module: Module) -> None:
    assert within(module.name, ("app.telemetry",)) or not defines_metrics(module)


@each_module
def test_only_the_edge_prints(module: Module) -> None:
    assert within(module.name, MAY_PRINT) or not prints(module)


@pytest.mark.parametrize("module", [*MODULES, *TESTS], ids=by_name)
def test_fits_in_the_reader_s_head(module: Module) -> None:
    assert len(module.source.splitlines()) <= FILE
    assert list(long_functions(module)) == []
    assert module.name.rpartition(".")[2] not in BANNED


@each_module
def test_opens_with_one_sentence(module: Module) -> None:
    assert opens_with_a_sentence(module)


def code(source: str, name: str = "policies.odd") -> Module:
    return Module(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("policies.odd", "import app.budget"),
        ("policies.odd", "from app import settings"),
        ("policies.odd", "def late():\n    from app.engines.fake import Fake"),
        ("policies.odd", "from importlib import import_module\nimport_module('app.engines')"),
        ("routers.chat", "from policies.direct import Direct"),
        ("app.types", "from app.errors import BadRequest"),
        ("app.errors", "from . import types"),
        ("app.engines.vllm", "from ..settings import Settings"),
        ("app.vllm_plugins.entropy", "import app.types"),
        ("app.factory", "def late():\n    import app.bench.engine"),
        ("app.cli", "import app.bench.engine"),
        ("app.novel", "import app.types"),
    ],
)
def test_a_wrong_arrow_is_seen(name: str, source: str) -> None:
    assert list(wrong_arrows(code(source, name), NAMES | {"app.settings"}))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "policies.even",
            "import json\nfrom app.types import Call\nfrom policies.base import Policy",
        ),
        ("app.engines.vllm", "from .fake import Fake"),
        ("app.cli", "def bench():\n    import app.bench.engine"),
        ("app.bench.report", "import app.bench.engine"),
    ],
)
def test_a_right_arrow_is_not(name: str, source: str) -> None:
    assert not list(wrong_arrows(code(source, name), NAMES))


def test_a_cycle_is_seen_and_a_type_s_is_not() -> None:
    a = code("from b import x", "a")
    lazy = code("def f():\n    import a", "b")
    typed = code("if TYPE_CHECKING:\n    import a", "b")
    eager = code("class B:\n    import a", "b")
    known = frozenset(("a", "b"))
    for b, expected in ((lazy, []), (typed, []), (eager, [["a", "b", "a"]])):
        assert cycles({m.name: imports(m, known, lazy=False) & known for m in (a, b)}) == expected


def test_a_package_is_imported_with_what_is_in_it() -> None:
    modules = {
        "app.engines": Module("app.engines", "import app.catalog", package=True),
        "app.engines.model": code("import torch", "app.engines.model"),
        "app.catalog": code("from pydantic import BaseModel", "app.catalog"),
    }
    needs = closure("app.engines.model", modules)
    assert needs == {"app", "app.engines", "app.engines.model", "app.catalog", "torch", "pydantic"}


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (reads_environment, "import os\nos.environ['A']", "import os\nos.replace(a, b)"),
        (reads_environment, "from os import getenv", "from os import replace"),
        (defines_metrics, "from prometheus_client import Gauge", "from enum import Enum"),
        (defines_metrics, "from opentelemetry import trace", "import app"),
        (defines_metrics, "import prometheus_client\nprometheus_client.Counter()", "Counter()"),
        (prints, "def f():\n    print('a')", "console.print('a')"),
        (lambda m: not opens_with_a_sentence(m), '"""Two. Sentences."""', '"""One: a.b, c."""'),
        (lambda m: not opens_with_a_sentence(m), "import os", '"""One:\n\n* A. Then more\n"""'),
        (lambda m: [*long_functions(m)], "def f():\n" + " pass\n" * 80, "def f():\n" + " 1\n" * 79),
    ],
)
def test_a_breach_is_seen(check: Callable[[Module], object], bad: str, good: str) -> None:
    assert check(code(bad))
    assert not check(code(good))

"""Log lines, as text or JSON: each says whose request it is about, and none says a secret."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]
OURS = ("app", "routers", "policies", "farthing")
MASK = "***"
_SHORTEST = 4  # characters of a secret that is looked for: a shorter one is part of any word
_LIKE_SECRETS = re.compile(
    r"sk-farthing-[\w-]+"
    r"|(?<=://)[^\s/@]+(?=@)"  # a URL's user and password
    r"|(?i:(?<=bearer ))[\x21-\x7e]{4,}"
)
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}
_CONTROLS[10] = "\n  | "  # whoever wrote the text, no second line of it looks like one of ours
_log = logging.getLogger(__name__)
_hidden: set[str] = set()
_known: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Inside:
    """Within which request something happens."""

    request_id: str
    trace_id: str = ""  # 32 hexadecimal digits, where it is part of a trace
    span_id: str = ""  # 16 of them, where it is a span of our own


_INSIDE: ContextVar[Inside | None] = ContextVar("inside", default=None)


@contextmanager
def inside(request: Inside) -> Iterator[None]:
    """What is logged meanwhile, by this task and those that it begins, is about this request."""
    token = _INSIDE.set(request)
    try:
        yield
    finally:
        _INSIDE.reset(token)


def hide(secrets: Iterable[str]) -> None:
    """None of these is to be seen in any line from now on."""
    global _known
    new = {each for each in secrets if len(each) >= _SHORTEST} - _hidden
    if new:
        _hidden.update(new)
        longest_first = sorted(_hidden, key=len, reverse=True)
        _known = re.compile("|".join(map(re.escape, longest_first)))


def masked(text: str) -> str:
    """Without what is hidden, and without what looks like a credential."""
    if _known is not None:
        text = _known.sub(MASK, text)
    return _LIKE_SECRETS.sub(MASK, text)


def configure(level: str, format: Format) -> None:
    """Log to stderr: from `level` on what is ours, of libraries what is worth a warning.

    Libraries' own details are not asked for at any level: they hold rows and headers.
    """
    # Their own start and stop lines say less than ours.
    chatty = logging.DEBUG if level == "debug" else logging.WARNING
    for name in ("uvicorn", "alembic"):
        logging.getLogger(name).setLevel(chatty)
    if logging.root.handlers:
        return  # somebody has a place for them already: a test, or an application around us
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    out = logging.StreamHandler()
    out.setFormatter(Json() if format == "json" else Text())
    logging.basicConfig(level=max(logging.WARNING, getattr(logging, level.upper())), handlers=[out])
    logging.captureWarnings(True)
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed


class Text(logging.Formatter):
    """One line, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        request = _INSIDE.get()
        about = "" if request is None else f" [{request.request_id}]"
        time = f"{self.formatTime(record)} {record.levelname} {record.name}{about}"
        lines = [f"{time} {record.getMessage().translate(_CONTROLS)}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        if record.stack_info:
            lines.append(self.formatStack(record.stack_info))
        return masked("\n".join(lines))


class Json(JsonFormatter):
    """One object a line."""

    def __init__(self) -> None:
        super().__init__(json_ensure_ascii=False)

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        moment = datetime.fromtimestamp(record.created, UTC)
        log_data["timestamp"] = moment.isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["message"] = record.getMessage()
        if (request := _INSIDE.get()) is not None:
            log_data["request_id"] = request.request_id
            if request.trace_id:
                log_data["trace_id"] = request.trace_id
            if request.span_id:
                log_data["span_id"] = request.span_id
        super().add_fields(log_data, record, message_dict)
        if "exc_info" in log_data:
            log_data["exception"] = log_data.pop("exc_info")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {k: masked(v) if isinstance(v, str) else v for k, v in log_data.items()}


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("the process ends with an error", exc_info=(kind, error, trace))


def _thread_crashed(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None and crash.exc_type is not SystemExit:
        details = crash.exc_type, crash.exc_value, crash.exc_traceback
        _log.critical("the thread %s ended with an error", crash.thread, exc_info=details)

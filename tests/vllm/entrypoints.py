"""Runs vLLM's own entrypoint tests against a server and through a gateway: `make test-entrypoints`.

They come with vLLM's source distribution. What they start is replaced by `both_sides`, and the
models they name by the default one; a test of what that cannot do fails on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from tests.vllm_servers import FARTHING, ROOT, exported, python

# Those that can be asked of one model of text on a CPU, neighbours with equal servers together.
FILES = (
    "entrypoints/openai/chat_completion/test_chat_completion.py",
    "entrypoints/openai/chat_completion/test_batched_chat_completions.py",
    "entrypoints/openai/chat_completion/test_logprob_token_ids.py",
    "entrypoints/openai/chat_completion/test_chat_logit_bias_validation.py",
    "entrypoints/openai/completion/test_completion.py",
    "entrypoints/openai/test_return_token_ids.py",
    "entrypoints/openai/chat_completion/test_chat.py",
    "entrypoints/openai/models/test_models.py",
    "entrypoints/openai/test_return_tokens_as_ids.py",
    "entrypoints/openai/test_chunked_prompt.py",
    "entrypoints/openai/chat_completion/test_chat_echo.py",
    "entrypoints/openai/chat_completion/test_completion_with_function_calling.py",
    "entrypoints/openai/chat_completion/test_include_reasoning.py",
    "entrypoints/openai/chat_completion/test_enable_force_include_usage.py",
    "entrypoints/openai/responses/test_basic.py",
    "entrypoints/openai/responses/test_stateful.py",
    "entrypoints/openai/responses/test_structured_output.py",
    "entrypoints/openai/responses/test_function_call.py",
    "entrypoints/openai/completion/test_prompt_validation.py",
    "entrypoints/anthropic/test_messages.py",
    "entrypoints/serve/tokenize/test_tokenization.py",
    "entrypoints/serve/instrumentator/test_basic.py",
)
_MODELS = re.compile(
    r'"(?:HuggingFaceH4|HuggingFaceTB|NousResearch|Qwen|facebook|hmellor|intfloat|openai-community)'
    r'/[\w.-]+"'
)
# Where the gateway differs on purpose: by their test's name, why. The README says it at length.
_PLACE = "vLLM's own endpoint, which speaks for one server"
_WORDS = "the same status, in other words"
_AT_ONCE = "answers are not written in the background"
DIFFERENT = {
    "test_kv_transfer_prompt_token_ids_round_trip": "kv_transfer_params is not for clients to set",
    "test_kv_transfer_prompt_token_ids_streaming": "kv_transfer_params is not for clients to set",
    "test_batched_chat_completions": _PLACE,
    "test_batched_chat_completions_with_json_schema": _PLACE,
    "test_batched_chat_completions_logprobs_not_token_id_placeholders": _PLACE,
    "test_batched_chat_completions_return_tokens_as_token_ids": _PLACE,
    "test_batched_chat_completions_logprob_token_ids": _PLACE,
    "test_invocations": _PLACE,
    "test_show_version": _PLACE,
    "test_server_load": _PLACE,
    "test_tokenizer_info_basic": _PLACE,
    "test_tokenizer_info_schema": _PLACE,
    "test_tokenizer_info_consistency_with_tokenize": _PLACE,
    "test_tokenizer_info_chat_template": _PLACE,
    "test_long_seed": _WORDS,
    "test_empty_prompt": _WORDS,
    "test_background_error": _WORDS,
    "test_store": _WORDS,
    "test_top_logprobs": "a boolean is no string",
    "test_check_models": "the list names no adapters and no server's folders",
    "test_background": _AT_ONCE,
    "test_background_cancel": _AT_ONCE,
    "test_anthropic_streaming_cache_usage": "what goes into a cache costs nothing, and is not told",
    "test_chat_with_enable_force_include_usage": "usage is told to who asks for it",
}
_SIDES = ("@direct", "@gateway")
Line: TypeAlias = Mapping[str, str]  # what `both_sides` says of a test on one side
Found: TypeAlias = dict[str, dict[str, Line]]  # by test and side


def main() -> None:
    options = argparse.ArgumentParser(prog="tests.vllm.entrypoints", description=__doc__)
    options.add_argument("theirs", type=Path, help="a folder with vLLM's sources")
    options.add_argument("files", nargs="*", help="below its tests/; default: all that fit")
    # A test with watermarks wants another server than its neighbours, which are the same without.
    options.add_argument(
        "-k", dest="only", default="not watermarked", help="as pytest's; default: %(default)r"
    )
    options.add_argument("--cores", default="0", help="of the server; default: %(default)s")
    options.add_argument("--keep", type=Path, help="a folder for logs and results")
    options.add_argument(
        "--again",
        type=int,
        default=2,
        metavar="N",
        help="times that what differs runs anew: some of them draw at random; default: %(default)s",
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="entrypoints-") as scratch:
        folder = Path(scratch)
        _copy(chosen.theirs, folder)
        logs = chosen.keep or folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        found: Found = {}
        tests = [f"tests/{file}" for file in chosen.files or FILES]
        for _ in range(1 + chosen.again):
            _run(folder, tests, chosen.only, chosen.cores, logs, found)
            unforeseen = [test for test in _differing(found) if _why(test) is None]
            tests = [line["node"] for test in unforeseen for line in found[test].values()]
            if not tests:
                break
        _print(found)
        sys.exit(bool(unforeseen))


def _copy(theirs: Path, folder: Path) -> None:
    """Their tests with our model in them, and ours in place of what starts servers."""
    for part in ("tests/entrypoints", "tests/tool_use", "examples"):
        if (theirs / part).exists():
            shutil.copytree(theirs / part, folder / part)
    for path in (folder / "tests").rglob("*.py"):
        path.write_text(_MODELS.sub('"smollm2"', path.read_text("utf-8")), "utf-8")
    (folder / "tests" / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("both_sides.py"), folder / "tests" / "utils.py")
    (folder / "smollm2").symlink_to(exported("fp32"))


def _run(
    folder: Path, tests: Iterable[str], only: str, cores: str, logs: Path, found: Found
) -> None:
    """Run these tests and add to `found`: a side that passed once has passed."""
    results = logs.resolve() / "results.jsonl"
    results.unlink(missing_ok=True)
    command = [str(python()), "-m", "pytest", "-q", "-p", "tests.utils", "-p", "no:cacheprovider"]
    command += ["-k", only, "--rootdir", str(folder), *tests]
    own = {
        "PYTHONPATH": str(folder),
        "BOTH_SIDES_FARTHING": str(FARTHING),
        "BOTH_SIDES_PATH": str(ROOT),
        "BOTH_SIDES_PYTHON": str(python()),
        "BOTH_SIDES_CORES": cores,
        "BOTH_SIDES_LOGS": str(logs.resolve()),
        "BOTH_SIDES_RESULTS": str(results),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(command, cwd=folder, env=os.environ | own, check=False)
    for line in map(json.loads, results.read_text("utf-8").splitlines()):
        sides = found.setdefault(line["test"], {})
        if sides.get(line["side"], line)["outcome"] != "passed":
            sides[line["side"]] = line


def _differing(found: Found) -> list[str]:
    return [test for test, sides in found.items() if len(set(_outcomes(sides))) > 1]


def _outcomes(sides: Mapping[str, Line]) -> list[str]:
    return [sides[side]["outcome"] if side in sides else "-" for side in _SIDES]


def _why(test: str) -> str | None:
    return DIFFERENT.get(test.partition("::")[2].partition("[")[0])


def _print(found: Found) -> None:
    """Each test with its outcomes, and why they differ or what was said."""
    for test, sides in found.items():
        direct, through = _outcomes(sides)
        print(f"{' ' if direct == through else '!'} {direct:8} {through:8} {test}")
        if direct != through:
            said = [line for side in sides.values() for line in side["said"].splitlines()[:12]]
            said = [_why(test) or "NOT ON PURPOSE", *said]
            print("\n".join(f"      {line}" for line in said))
    both = sum(_outcomes(sides) == ["passed", "passed"] for sides in found.values())
    differing = _differing(found)
    on_purpose = sum(_why(test) is not None for test in differing)
    print(f"{len(found)} tests: {both} pass on both sides, {len(differing)} differ,", end=" ")
    print(f"{on_purpose} of them on purpose")


if __name__ == "__main__":
    main()

"""JSON schemas from strangers: what they may hold, and how long a compiler may think about them.

Alternatives inside alternatives multiply: ten pairs of them keep the compiler busy for minutes, and with it every other
answer. So a process of its own tries first, and is ended by the system when its time is up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

from leveret.serving.config import ServeConfig
from leveret.serving.errors import ApiError

EXPRESSIONS = ("pattern", "patternProperties", "format")
"""Keys that bring regular expressions, which are not run for strangers at all."""
DEEPEST = 32
"""Levels of a schema."""
TRIAL = """
import resource, signal, sys
from llguidance import JsonCompiler, LLMatcher, LLTokenizer
text = sys.stdin.read()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
signal.setitimer(signal.ITIMER_PROF, 0.2)
grammar = JsonCompiler(whitespace_flexible=False).compile(text)
sys.exit(LLMatcher(LLTokenizer("byte"), grammar, log_level=0).is_error())
"""
"""Ends by SIGPROF after 0.2 s of computing."""
TRIAL_SECONDS = 10.0
"""Of the clock, the start of the process with it."""


def check_schema(schema: dict[str, Any], config: ServeConfig) -> None:
    """Takes a while, so call it in a thread.

    Raises:
        ApiError: the schema is large, deep, refers to what is outside it, has regular expressions, or takes long.
    """
    if (size := len(json.dumps(schema))) > config.max_schema_bytes:
        raise _refused(f"has {size} bytes, more than {config.max_schema_bytes}")
    _check(schema, DEEPEST)
    if not _compiles(json.dumps(schema)):
        raise _refused("is none, asks for what cannot be checked here, or has too many alternatives")


def _check(node: Any, levels: int) -> None:
    if levels == 0:
        raise _refused(f"is deeper than {DEEPEST} levels")
    if isinstance(node, dict):
        for key, value in node.items():
            # A property may be called "pattern"; its value is then a schema, not text.
            if key in EXPRESSIONS and (isinstance(value, str) or key == "patternProperties"):
                raise _refused(f"has {key!r}, which is not run here; leave it out")
            if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
                raise _refused("may refer to its own parts only (#/...)")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check(value, levels - 1)


@lru_cache(maxsize=256)
def _compiles(text: str) -> bool:
    command = [sys.executable, "-I", "-c", TRIAL]
    try:
        tried = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TRIAL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0


def _refused(why: str) -> ApiError:
    return ApiError(400, f"The JSON schema {why}.", "response_format")

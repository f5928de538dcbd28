"""Checking what the command prints with --json by the schema that the wheel has."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

import jsonschema

from chrootfw.cli import parser

SCHEMA = json.loads((resources.files("chrootfw.cli") / "schema.json").read_text(encoding="utf-8"))
DEFINITIONS = SCHEMA["$defs"]


@functools.cache
def _validator(name: str) -> Any:
    part = {"$schema": SCHEMA["$schema"], "$ref": f"#/$defs/{name}", "$defs": DEFINITIONS}
    return jsonschema.Draft202012Validator(part)


def check(argv: list[str], answer: Any) -> None:
    """Raise ``ValidationError`` unless the answer is one of the verb's, or an error.

    ``argv``: the words behind ``chrootfw``.
    """
    verb, _, _ = parser.split_arguments(argv)
    _validator("error-answer" if "error" in answer else f"{verb}-answer").validate(answer)


def refused(definition: str, value: Any) -> bool:
    """Whether a definition does not allow a value."""
    return not _validator(definition).is_valid(value)

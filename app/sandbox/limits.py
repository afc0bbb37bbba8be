"""How much a program that nobody trusts may use: the table [sandbox] of farthing.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Bounds of one run, and of how many there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(5.0, gt=0, le=600)  # from its first line, by the clock
    memory_mib: int = Field(256, ge=64, le=65536)  # address space, the interpreter's 30 included
    at_once: int = Field(2, ge=1, le=256)  # runs of one gateway process; others wait

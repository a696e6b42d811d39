"""What a recipe may say about the hardware; here without torch, so that recipes are read at once."""

from typing import Literal

Precision = Literal["auto", "bf16", "fp16", "fp32", "fp8"]

"""How far CUDA may round, as the setting PRECISION says."""

from typing import Literal

# not at all; factors to ten bits of mantissa; features to float16
Precision = Literal["strict", "tf32", "fp16"]

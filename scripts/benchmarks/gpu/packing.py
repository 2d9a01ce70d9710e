"""x"""
from pathlib import Path
def pack(folder: Path, architecture: int) -> None:
    """x"""

"""The names that data sets give to their splits: `valid`, `validation` and `val2017` all mean `val`."""

import re
from collections import Counter
from collections.abc import Collection

TRAIN, VAL, TEST = "train", "val", "test"
ALL = "all"  # every image of a data set that has no splits

_SPELLINGS = {
    TRAIN: re.compile(r"train(ing)?([-_ ]?(\d{4}|set|data|images))?"),
    VAL: re.compile(r"(val(id|idation)?|dev)([-_ ]?(\d{4}|set|data|images))?"),
    TEST: re.compile(r"test(ing)?([-_ ]?(\d{4}|set|data|images))?"),
}


def meaning(name: str) -> str | None:
    """`train`, `val` or `test` if `name` is one of their spellings, in any case."""
    return next((split for split, spelling in _SPELLINGS.items() if spelling.fullmatch(name.lower())), None)


def shown(names: Collection[str]) -> list[str]:
    """The names under which the splits can be asked for, in alphabetical order.

    A spelling of train, val or test becomes that word, unless two names have the same meaning.
    """
    meanings = Counter(meaning(name) for name in names)
    return sorted(
        what if (what := meaning(name)) and meanings[what] == 1 and (what == name or what not in names) else name
        for name in names
    )


def match(wanted: str, names: Collection[str]) -> str | None:
    """The name that `wanted` stands for: itself, or the only one with the same meaning; None if there is none.

    Raises ValueError if several names have this meaning.
    """
    if wanted in names:
        return wanted
    what = meaning(wanted)
    found = sorted(name for name in names if what and meaning(name) == what)
    if len(found) > 1:
        raise ValueError(f"split {wanted} can mean {' or '.join(found)}; name one of them")
    return found[0] if found else None


def of_path(parts: Collection[str]) -> str | None:
    """The name of the innermost folder that is a spelling of train, val or test.  parts: from the outermost folder."""
    return next((part for part in reversed(list(parts)) if meaning(part)), None)

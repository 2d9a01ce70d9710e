"""The classes of a COCO document: their order, and the categories that are not classes.

A category is not a class if no object of any split belongs to it, and either it is only the root of others (its name is
their `supercategory`, as Roboflow writes it), or its name says that it is the background.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from faster_rcnn.data.coco_records import Category, Identity, canonical, records
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.json_lists import JSONList, decode_document, read_text
from faster_rcnn.data.label_names import BACKGROUND
from faster_rcnn.data.repairs import Repairs


def read_categories(file: Path, elements: JSONList, faults: list[Fault], repairs: Repairs) -> list[Category]:
    """The categories in the order of their ids. Their faults cannot be skipped: skipping would change the numbers."""
    categories: dict[Identity, Category] = {}
    first_with: dict[str, str] = {}
    for category, where in records(Category, "category", file, elements, faults, repairs, skippable=False):
        if category.id in categories:
            what = f"category {category.id!r} ({category.name}) is already listed as {categories[category.id].name}"
            faults.append(Fault("class listed twice", where, what, "give each category its own id", skippable=False))
        elif (first := first_with.setdefault(category.name, where)) != where:
            what = f"the class {category.name} is already listed at {first}"
            faults.append(Fault("class listed twice", where, what, "rename one, or merge the two", skippable=False))
        else:
            categories[category.id] = category
    return sorted(categories.values(), key=_order)


def _order(category: Category) -> tuple[bool, float, str]:
    """Numbers first, in their order, also where they are written as text."""
    text = canonical(category.id)
    try:
        value = float(text)
    except (ValueError, OverflowError):
        return True, 0, text
    return (False, value, text) if value == value else (True, 0, text)  # "nan" is a name, not a number


def without_roots(
    file: Path, categories: Sequence[Category], documents: Sequence[Path], faults: list[Fault]
) -> list[Category]:
    """The categories that are classes; one warning names the others and states the rule.

    documents: those of all splits, in which a category may have objects.
    """
    kinds = _kinds(categories)
    unused = set(kinds)
    for document in documents if unused else ():
        unused -= _used_names(document, _changed(document))
    if not unused or len(unused) == len(categories):
        return list(categories)
    named = ", ".join(f"{name} ({kinds[name]})" for name in sorted(unused))
    what = (
        f"not classes: {named}; a category without objects in any split is left out if it is only the root of others "
    )
    what += "or the background"
    faults.append(Fault("category left out", str(file), what, "annotate objects of it if it is a class", warning=True))
    return [category for category in categories if category.name not in unused]


def _kinds(categories: Sequence[Category]) -> dict[str, str]:
    """The names of the categories that may not be classes, and why."""
    parents = [one.supercategory for one in categories if one.supercategory != one.name]
    children = Counter(parent for parent in parents if isinstance(parent, str))
    kinds = {}
    for category in categories:
        if category.name.strip().lower() in BACKGROUND:
            kinds[category.name] = "the background"
        elif category.supercategory in (None, "", "none", "None", category.name) and children[category.name]:
            kinds[category.name] = f"the root of {children[category.name]} others"
    return kinds


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _used_names(file: Path, changed: int) -> frozenset[str]:  # noqa: ARG001  (part of the cache's key)
    """The names of the categories that a document's annotations use; none if it is not in COCO's format."""
    try:
        document = decode_document(read_text(file))
    except (ValueError, OSError, RecursionError):
        return frozenset()  # reading that split reports it
    used = {canonical(one.get("category_id")) for one in _dicts(document.get("annotations"))}
    categories = _dicts(document.get("categories"))
    return frozenset(str(one.get("name")) for one in categories if canonical(one.get("id")) in used)


def _dicts(elements: Any) -> Iterable[dict[str, Any]]:
    return (one for one, _ in elements if isinstance(one, dict)) if isinstance(elements, JSONList) else ()

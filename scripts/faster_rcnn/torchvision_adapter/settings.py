"""The settings of a torchvision model that its weights do not hold.

A checkpoint does not say how large its images were, nor which thresholds its model had. They come from, in this order:
an option of the command, the arguments that the training program saved in the file, torchvision's defaults. The command
prints each value with its source, and `model.json` keeps them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead

OPTION, DEFAULT = "option", "torchvision's default"
SKIPPED = {"optimizer", "optimizer_states", "lr_scheduler", "lr_schedulers", "scaler"}  # entries without settings


def _number(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{str(value)[:40]!r} is not a number") from None


def whole(value: Any) -> int:
    """A whole number of at least 1."""
    number = _number(
        value[-1] if isinstance(value, (list, tuple)) and value else value
    )  # torchvision uses the last size
    if isinstance(value, bool) or not 1 <= number < 2**31 or number != int(number):
        raise ValueError(f"{value} is not a whole number of at least 1")
    return int(number)


def probability(value: Any) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not 0 <= (number := _number(value)) <= 1:
        raise ValueError(f"{value} is not between 0 and 1")
    return number


def _numbers(count: int, positive: bool) -> Callable[[Any], tuple[float, ...]]:
    def convert(value: Any) -> tuple[float, ...]:
        found = tuple(_number(one) for one in (value.replace(",", " ").split() if isinstance(value, str) else value))
        if len(found) != count or not all(abs(one) < 1e6 and (one > 0 or not positive) for one in found):
            raise ValueError(f"{value} does not have {count} numbers{' above 0' if positive else ''}")
        return found

    return convert


def _lists(value: Any) -> tuple[tuple[float, ...], ...]:
    """[32, 64] or "32 64": a number for each map. [[32, 64], [128]] or "32,64 128": several for each map."""
    rows = value.split() if isinstance(value, str) else list(value)
    found = tuple(
        tuple(_number(one) for one in (row.split(",") if isinstance(row, str) else row if _is_list(row) else [row]))
        for row in rows
    )
    if not found or not all(row and all(0 < one < 1e6 for one in row) for row in found):
        raise ValueError(f"{value} is not a list of numbers above 0")
    return found


def _ratios(value: Any) -> tuple[tuple[float, ...], ...]:
    """[0.5, 1] or "0.5,1": the same for every map. [[0.5, 1], [1, 2]]: of each map."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    return _lists(value if value and _is_list(value[0]) else [value])


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


@dataclass(frozen=True)
class Setting:
    """A setting by torchvision's name. convert: raises ValueError or TypeError for values that cannot be used."""

    convert: Callable[[Any], Any]
    help: str
    metavar: str = "N"
    is_argument: bool = True  # of torchvision's builder
    also: tuple[str, ...] = ()  # other names in files

    def option(self, name: str) -> str:
        return "--" + name.removesuffix("_test").replace("_", "-")


SETTINGS = {
    "min_size": Setting(whole, "shorter side of a resized image, in pixels"),
    "max_size": Setting(whole, "longest side of a resized image, in pixels"),
    "image_mean": Setting(_numbers(3, False), "mean of red, green and blue, where white is 1", "R,G,B"),
    "image_std": Setting(_numbers(3, True), "standard deviation of red, green and blue, where white is 1", "R,G,B"),
    "anchor_sizes": Setting(
        _lists, "sizes of anchors in pixels, one for each map, or several with commas", "'N N …'", False,
        ("rpn_anchor_sizes",),
    ),
    "aspect_ratios": Setting(
        _ratios, "height / width of anchors, for every map", "'N,N,…'", False, ("rpn_aspect_ratios", "anchor_ratios")
    ),
    "rpn_pre_nms_top_n_test": Setting(whole, "proposals of a map that enter the RPN's NMS"),
    "rpn_post_nms_top_n_test": Setting(whole, "proposals that the RPN keeps"),
    "rpn_nms_thresh": Setting(probability, "IoU threshold of the RPN's NMS"),
    "rpn_score_thresh": Setting(probability, "score that a proposal must reach"),
    "box_score_thresh": Setting(probability, "score that a detection must pass"),
    "box_nms_thresh": Setting(probability, "IoU threshold of the detections' NMS"),
    "box_detections_per_img": Setting(whole, "most detections of an image"),
    "bbox_reg_weights": Setting(_numbers(4, True), "weights of the head's deltas", "X,Y,W,H"),
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The settings that were found, by torchvision's names.

    values: those of options and of the file;  sources: of every setting;  faults: lines on values in the file that
    cannot be used.
    """

    values: dict[str, Any]
    sources: dict[str, str]
    faults: tuple[str, ...]


def choose(given: Mapping[str, Any], content: Any) -> Chosen:
    """The settings that options give, else those of the file.

    given: by torchvision's names, None where there is no option;  content: of the file.
    Raises ValueError if the file gives a setting twice with different values, and no option decides.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    faults: list[str] = []
    for name, setting in SETTINGS.items():
        sources[name] = DEFAULT
        if given.get(name) is not None:
            values[name], sources[name] = given[name], OPTION
            continue
        names = {name, name.removesuffix("_test"), *setting.also}
        found: dict[str, Any] = {}
        for place, value in _entries(content, names):
            try:
                found[place] = setting.convert(value)
            except (ValueError, TypeError):
                faults.append(f"{place} = {str(value)[:40]} cannot be used; {setting.option(name)} sets it")
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{place} = {value}" for place, value in found.items())
            raise ValueError(f"the file gives different values: {listed}; choose with {setting.option(name)}")
        if found:
            sources[name], values[name] = next(iter(found.items()))
    return Chosen(values, sources, tuple(faults))


def _entries(value: Any, names: set[str], place: str = "", around: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Places and values of the entries that have one of the names, at any depth; those that are None are left out."""
    if not isinstance(value, Mapping) or id(value) in around:
        return
    for key, one in value.items():
        name = str(key).replace("-", "_").lstrip("_").rsplit(".", 1)[-1]
        inner = f"{place}.{key}" if place else str(key)
        if name in names and one is not None and not isinstance(one, Mapping):
            yield inner, one
        elif key not in SKIPPED:
            yield from _entries(one, names, inner, around | {id(value)})


def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are arguments of torchvision's builders."""
    return {name: value for name, value in values.items() if SETTINGS[name].is_argument}


def set_anchors(model: FasterRCNN, values: Mapping[str, Any]) -> None:
    """Replaces the anchors, and the RPN's head if there are more or fewer of them at a location.

    Raises ValueError if there are not sizes for each map.
    """
    if not values.keys() & {"anchor_sizes", "aspect_ratios"}:
        return
    rpn = model.rpn
    before = rpn.anchor_generator
    sizes = values.get("anchor_sizes", before.sizes)
    ratios = values.get("aspect_ratios", before.aspect_ratios)
    if len(ratios) != len(before.sizes):  # the same for every map
        ratios = (tuple(one for row in ratios for one in row),) * len(before.sizes)
    if len(sizes) == 1:
        sizes = sizes * len(before.sizes)
    if len(sizes) != len(before.sizes):
        raise ValueError(
            f"the anchor sizes are for {len(sizes)} maps, the model has {len(before.sizes)}; give --anchor-sizes with "
            "one number for each map, or several with commas for all of them"
        )
    rpn.anchor_generator = AnchorGenerator(sizes, ratios)
    counts = rpn.anchor_generator.num_anchors_per_location()
    if len(set(counts)) > 1:
        raise ValueError(f"the maps have {counts} anchors at a location; they need equally many")
    if counts != before.num_anchors_per_location():
        rpn.head = RPNHead(model.backbone.out_channels, counts[0], len(rpn.head.conv))


def check_order(model: FasterRCNN) -> None:
    """Raises ValueError if the shorter side of an image would exceed the longer one."""
    shorter, longer = model.transform.min_size[-1], model.transform.max_size
    if shorter > longer:
        raise ValueError(f"--min-size {shorter} exceeds --max-size {longer}; give both, as in training")


def settings_of(model: FasterRCNN) -> dict[str, Any]:
    """The settings of a model by torchvision's names."""
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    return {
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "image_mean": tuple(transform.image_mean),
        "image_std": tuple(transform.image_std),
        "anchor_sizes": tuple(map(tuple, rpn.anchor_generator.sizes)),
        "aspect_ratios": tuple(map(tuple, rpn.anchor_generator.aspect_ratios)),
        "rpn_pre_nms_top_n_test": rpn.pre_nms_top_n(),
        "rpn_post_nms_top_n_test": rpn.post_nms_top_n(),
        "rpn_nms_thresh": rpn.nms_thresh,
        "rpn_score_thresh": rpn.score_thresh,
        "box_score_thresh": heads.score_thresh,
        "box_nms_thresh": heads.nms_thresh,
        "box_detections_per_img": heads.detections_per_img,
        "bbox_reg_weights": tuple(heads.box_coder.weights),
    }


def recorded(model: FasterRCNN, chosen: Chosen) -> dict[str, Any]:
    """Every setting with its source, for `model.json`."""
    return {name: {"value": value, "source": chosen.sources[name]} for name, value in settings_of(model).items()}


def report(model: FasterRCNN, chosen: Chosen) -> list[str]:
    """Lines that name every setting as an option, by its source."""
    by_source: dict[str, list[str]] = {}
    for name, value in settings_of(model).items():
        source = chosen.sources[name]
        kind = (
            "given" if source == OPTION else "assumed, torchvision's defaults" if source == DEFAULT else "from the file"
        )
        where = f" ({source})" if kind == "from the file" else ""
        by_source.setdefault(kind, []).append(f"{SETTINGS[name].option(name)} {in_words(value)}{where}")
    return [f"{kind}: {' '.join(options)}" for kind, options in by_source.items()] + list(chosen.faults)


def in_words(value: Any) -> str:
    """A value as an option takes it."""
    if not isinstance(value, tuple):
        return str(value)
    if value and not isinstance(value[0], tuple):
        return ",".join(f"{one:g}" for one in value)
    rows = [",".join(f"{one:g}" for one in row) for row in value]
    text = rows[0] if len(set(rows)) == 1 else " ".join(rows)
    return f"'{text}'" if " " in text else text

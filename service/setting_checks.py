"""Checks of the settings before anything is loaded: values, files and folders, and misspelled variables.

Each fault is one line that names the flag or variable, its value, and what is allowed.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from service import keys
from service.images import formats
from service.models.remote import Remote, RemoteError, missing_library
from service.models.store import check_listed, directories, find_place, misplaced, parse_place
from service.settings import Settings

LONGEST_SHOWN = 100  # characters of a value
FORMER = {"ALLOW_TF32": "PRECISION"}  # settings of earlier releases, and what replaces them
FIRST_LISTING_SECONDS = 10.0  # for the check of a store at a URL; a slower one is listed again when models are loaded
SHORT_NAME = 5  # letters; a name such as PORT resembles so many others that only slips of the hand count as misspelled
RESEMBLANCE = 0.8  # of difflib; MODEL_STORE_PATH has 0.81, METRICS_SERVICE_PORT (Kubernetes) 0.75


def flag(name: str) -> str:
    """The flag of the setting `name`."""
    return f"--{name.replace('_', '-')}"


def described(name: str, value: object, flags: Collection[str]) -> str:
    """A setting and its value as the user gave them. `flags`: the settings that were given as flags."""
    text = repr(str(value))
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
    if name in flags:
        return f"{flag(name)} {shown}"
    default = "" if os.environ.get(name.upper(), "").strip() else " (the default)"
    return f"{name.upper()}={shown}{default}"


def value_fault(error: Mapping[str, Any], flags: Collection[str]) -> str:
    """One line about a value that a setting refuses. `error`: an item of pydantic's `ValidationError.errors()`."""
    name, value = str(error["loc"][0]), error["input"]
    if error["type"] == "value_error":
        fault = str(error["ctx"]["error"])  # a sentence from service.settings
    elif str(value).startswith("tcp://"):
        fault = (
            "Kubernetes sets this variable for a service of that name; rename the service, or set "
            "enableServiceLinks: false in the pod"
        )
    else:
        fault = f"must be {allowed(Settings.model_fields[name])}"
    return f"{described(name, value, flags)}: {fault}"


def allowed(field: FieldInfo) -> str:
    """The values that a setting takes, in words."""
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(field.annotation)))}"
    kinds = get_args(field.annotation) or (field.annotation,)
    if bool in kinds:
        return "1, true, yes or on, or else 0, false, no or off"
    number = "a whole number" if int in kinds else "a number"
    number = "a number of bytes, such as 1000000000, 800MB or 1.5GiB" if ByteSize in kinds else number
    limits = field.metadata
    words = [f"at least {limit.ge}" for limit in limits if isinstance(limit, Ge)]
    words += [f"greater than {limit.gt}" for limit in limits if isinstance(limit, Gt)]
    words += [f"at most {limit.le}" for limit in limits if isinstance(limit, Le)]
    return ", ".join([number, " and ".join(words)]) if words else number


def faults(settings: Settings, flags: Collection[str]) -> Iterator[str]:
    """One line for each file, folder or combination of settings with which the service cannot start."""
    yield from _remote_faults(settings, flags) if isinstance(settings.model_store, str) else _faults(settings, flags)
    if fault := formats.missing(formats.parse(settings.image_formats)):
        yield f"{described('image_formats', settings.image_formats, flags)}: {fault}"
    if settings.api_keys_file:
        try:
            keys.parse(keys.read(settings.api_keys_file))
        except keys.KeysFileError as error:
            yield f"{described('api_keys_file', settings.api_keys_file, flags)}: {error}{_near(settings.api_keys_file)}"


def _faults(settings: Settings, flags: Collection[str]) -> Iterator[str]:
    """The faults of the model store, if it is a folder, and of the default model."""
    store = settings.store_folder
    if (fault := _folder_fault(store)) or (fault := misplaced(store)):
        yield f"{described('model_store', store, flags)}: {fault}"
    elif settings.default_model:
        try:
            find_place(store, settings.default_model)
        except ValueError as error:
            yield f"{described('default_model', settings.default_model, flags)}: {error}"


def _remote_faults(settings: Settings, flags: Collection[str]) -> Iterator[str]:
    """The same for a store at a URL, and for the folder of its copy.

    A copy that holds models can be served whatever is wrong with the store. A store that merely does not answer is
    tried again while the service runs.
    """
    url = str(settings.model_store)
    try:
        folder = settings.store_folder
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except (OSError, ValueError) as error:
        reason = (error.strerror or "unknown error").lower() if isinstance(error, OSError) else str(error)
        yield (
            f"{described('model_cache', settings.model_cache or '', flags)}: the folder for fetched models cannot be "
            f"made or written ({reason}); set MODEL_CACHE to a folder that can"
        )
        return
    if fault := missing_library(url):
        yield f"{described('model_store', url, flags)}: {fault}"
        return
    try:
        listed = Remote(url, list_seconds=FIRST_LISTING_SECONDS).list()
    except RemoteError as error:
        if error.lasting and not directories(folder).versions:
            yield f"{described('model_store', url, flags)}: {error}"
        return
    if listed.misplaced:
        yield f"{described('model_store', url, flags)}: {listed.misplaced}"
    elif settings.default_model:
        try:
            check_listed(parse_place(settings.default_model), listed.names, listed.versions)
        except ValueError as error:
            yield f"{described('default_model', settings.default_model, flags)}: {error}"


def _folder_fault(folder: Path) -> str | None:
    """Why `folder` cannot be the model store, or None."""
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no such folder{_near(folder) or '; set MODEL_STORE to the folder of your models'}"
    except OSError as error:
        return f"the folder cannot be read ({(error.strerror or 'unknown error').lower()})"
    if not is_folder:
        return "this is a file; set MODEL_STORE to the folder of your models"
    if not os.access(folder, os.R_OK | os.X_OK):
        return "the folder cannot be read (permission denied); change its permissions or the user of the service"
    return None


def _near(path: Path) -> str:
    """A suggestion for a path, if it does not exist."""
    try:
        others = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    if path.name in others:
        return ""
    near = difflib.get_close_matches(path.name, others, n=1, cutoff=0.7)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def misspelled(variables: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(variable, setting) for each environment variable that is probably a misspelled setting."""
    settings = [name.upper() for name in Settings.model_fields]
    slips = {slip: name for name in settings if len(name) <= SHORT_NAME for slip in _slips(name)}
    long = [name for name in settings if len(name) > SHORT_NAME]
    for variable in sorted(variables):
        name = variable.upper()
        if variable in settings:
            continue
        if name in settings:
            yield variable, name
        elif name in FORMER:
            yield variable, FORMER[name]
        elif name in slips:
            yield variable, slips[name]
        elif near := difflib.get_close_matches(name, long, n=1, cutoff=RESEMBLANCE):
            yield variable, near[0]
        elif "_" in name and (longer := [each for each in long if each.startswith(f"{name}_")]):
            yield variable, longer[0]


def _slips(name: str) -> set[str]:
    """`name` with two neighbouring letters swapped, or one letter doubled or left out."""
    places = range(len(name))
    swapped = {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in places[:-1]}
    doubled = {name[:i] + name[i] + name[i:] for i in places}
    left_out = {name[:i] + name[i + 1 :] for i in places}
    return (swapped | doubled | left_out) - {name}

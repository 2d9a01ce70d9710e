"""Finds the image of an annotation file in Pascal VOC's format, also under a name that only looks alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from reprlib import repr as short

from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import LOOKS_ALIKE, spelling
from faster_rcnn.data.repairs import Repair, Repairs

OTHER_FILENAME = Repair(
    "another filename",
    "images",
    "belong to an annotation file whose <filename> names another image of the data set; the one that is called as the "
    "annotation file is used",
    "check that the boxes belong to it, and correct <filename>",
)


class ImagesByStem:
    """Image files by their names without extension, also under names that look alike.  place: for messages."""

    def __init__(self, files: Mapping[str, Sequence[Path]], place: Path) -> None:
        self.place = place
        self._files = files
        self._by_spelling: dict[str, list[Path]] | None = None

    def exact(self, stem: str) -> Sequence[Path]:
        """The files with this stem."""
        return self._files.get(stem, ())

    def alike(self, stem: str) -> Sequence[Path]:
        """The files with a stem that looks like this one."""
        if self._by_spelling is None:
            self._by_spelling = {}
            for written, files in self._files.items():
                self._by_spelling.setdefault(spelling(written), []).extend(files)
        return self._by_spelling.get(spelling(stem), ())


def image_of(
    name: str, filename: str, file: Path, files: ImagesByStem, faults: list[Fault], repairs: Repairs
) -> Path | None:
    """The image of an annotation file: the one with the same name, else the one that its <filename> names.

    If there is neither, an image under a name that looks alike is taken if there is only one. If there is no image,
    returns None and adds the reason to `faults`.

    name: the annotation file's, without extension;  filename: what its <filename> says, or "".
    """
    stated = PurePosixPath(filename.replace("\\", "/")).name  # some tools write a whole path
    of_stated = [file for file in files.exact(PurePosixPath(stated).stem) if stated in (file.name, file.stem)]
    candidates = list(files.exact(name))
    if candidates and of_stated and not set(candidates) & set(of_stated):
        repairs.count(OTHER_FILENAME, str(file), f"{stated} beside {candidates[0].name}")
    candidates = candidates or of_stated
    if not candidates:
        of_filename = [
            one
            for one in files.alike(PurePosixPath(stated).stem)
            if spelling(stated) in (spelling(one.name), spelling(one.stem))
        ]
        alike = list(dict.fromkeys([*files.alike(name), *of_filename]))
        if len(alike) == 1:
            repairs.count(LOOKS_ALIKE, str(file), f"{name}, found as {alike[0].name}")
            return alike[0]
        what = f"no image {name}.* in {files.place}" + (f", nor {short(stated)}" if stated else "")
        what += f"; {', '.join(file.name for file in alike[:3])} look alike" if alike else ""
        faults.append(Fault("missing image", str(file), what, f"add it or remove {name} from the list"))
        return None
    path = next((file for file in candidates if file.name == stated), candidates[0])
    if len(candidates) > 1:
        what = f"{', '.join(file.name for file in candidates)} all have this name; {path.name} is used"
        faults.append(Fault("several images", str(file), what, "remove the others", warning=True))
    return path

"""What `faster-rcnn pin` needs of a store at a URL, as a local folder: its folders and its files `default`."""

from __future__ import annotations

from pathlib import Path

from service.engine.card import LARGEST_CARD, CardError, read_card
from service.engine.model import ModelIncompleteError, ModelRefusedError
from service.models.remote import Remote
from service.models.store import LARGEST_FILE


class RemoteCopy:
    """The store `remote` in `folder`, without the files of its versions. Its methods raise RemoteError."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.folder = folder
        self._remote = remote
        self._contents = remote.list()
        for place in self._contents.versions:
            (folder / place).mkdir(parents=True, exist_ok=True)
        for name, file in self._contents.defaults.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "default").write_bytes(remote.read(file, LARGEST_FILE + 1))

    def check(self, folder: Path) -> None:
        """Raises ModelRefusedError if the card of this version is faulty or a file that it lists is missing."""
        place = folder.relative_to(self.folder).as_posix()
        files = self._contents.versions[place]
        if "model.json" not in files:
            raise ModelIncompleteError("model.json is missing; publish the model again")
        try:
            card = read_card(self._remote.read(files["model.json"], LARGEST_CARD + 1))
        except CardError as error:
            raise ModelRefusedError(str(error)) from error
        if f"{card.name}/{card.version}" != place:
            raise ModelRefusedError(f"model.json says {card.name}/{card.version}; rename the folder")
        sizes = {"model.onnx": None} | {graph.file: graph.bytes for graph in card.graphs.values()}
        for name, size in sizes.items():
            if name not in files or (size is not None and files[name].bytes != size):
                raise ModelIncompleteError(f"{name} is missing or incomplete; publish the model again")

    def upload(self, path: str) -> None:
        """Writes the file `default` with this path to the store as it is in the folder, or removes it there."""
        file = self.folder / path
        if file.exists():
            self._remote.write(path, file.read_bytes())
        else:
            self._remote.remove(path)

"""Runs any convolutional network on a canvas so that each image is computed as if it were alone on its tight canvas.

The detectors of this project blank their padding layer by layer (`detector/padding.py`). A network from elsewhere knows
nothing of padding, so here every operation that it calls is watched. Each feature map is tagged with the extent of each
image, which is the size that the map would have if the image were alone. Before an operation looks at neighbouring
cells, the cells outside the extent are set to what the operation would find beyond the border of that smaller map. An
operation without a rule is refused, because it might carry the padding into the image.

A map is *blank* if it is zero outside the images.

- `extent.py`      the extent of the images on maps of one size
- `tags.py`        what is known of a tensor
- `mode.py`        the mode that watches the calls
- `operations.py`  which functions of PyTorch call which operation, and which of them write in place
- `table.py`       the rule of each operation
- `cells.py`, `windows.py`, `statistics.py`, `resizing.py`, `channels.py`   the rules, by what the operation looks at
"""

from faster_rcnn.torchvision_adapter.extents.extent import Extent, Unsupported
from faster_rcnn.torchvision_adapter.extents.mode import AsIfAlone

__all__ = ["AsIfAlone", "Extent", "Unsupported"]

import pytest
import torch
import torchvision

from faster_rcnn.backbones import BACKBONES, VGG16, Compact


def test_vgg16_is_torchvisions_first_thirty_layers() -> None:
    backbone = VGG16().eval()
    theirs = torchvision.models.vgg16(weights=None)
    missing = backbone.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert all(name.startswith("classifier.") for name in missing.unexpected_keys)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(image, torch.tensor([[64, 96]]))
        torch.testing.assert_close(features, theirs.features[:30](image))
    assert features.shape == (1, 512, 4, 6)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("size", [(64, 96), (63, 81), (33, 50)])
def test_features_depend_on_the_image_alone(name: str, size: tuple[int, int]) -> None:
    """Alone on the tightest canvas, or in a batch on a larger one: the same numbers, and zero outside."""
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    height, width = size
    h, w = -(-height // 16), -(-width // 16)
    image = torch.randn(3, height, width)
    tight, large = torch.zeros(1, 3, h * 16, w * 16), torch.zeros(3, 3, 128, 160)
    tight[0, :, :height, :width] = image
    large[1, :, :height, :width] = image
    large[0] = torch.randn(3, 128, 160)
    sizes = torch.tensor([[128, 160], [height, width], [0, 0]])
    with torch.no_grad():
        alone = backbone(tight, sizes[1:2])[0]
        beside = backbone(large, sizes)[1]
    torch.testing.assert_close(beside[:, :h, :w], alone, rtol=1e-4, atol=1e-5)
    assert alone.abs().max() > 0
    assert beside[:, h:].eq(0).all()
    assert beside[:, :, w:].eq(0).all()


def test_compact_stays_compact() -> None:
    assert sum(parameter.numel() for parameter in Compact().parameters()) < 1_000_000

"""What is ResNet's own; the rest is in test_image_encoders.py."""

from image_contract import shapes

from mammoclip_jax.models.resnet import ResNet


def test_resnet_50_of_medclip():
    """Its projection is one product without bias; test_image_encoders.py has its maps."""
    leaves = {name: leaf for name, leaf in shapes(ResNet(variant="50", fc=512)).items() if name.startswith("params/")}
    assert sum(leaf.size for leaf in leaves.values()) == 24_556_608
    assert leaves["params/fc/kernel"].shape == (2048, 512)

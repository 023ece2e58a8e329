"""Cameras: in the order that the names tell, or refused."""

import pytest

from mjx_so101.errors import ConfigError
from policies.cameras import match_cameras

TWO = ("image_cam_0", "image_cam_1")


def test_cameras_in_order():
    assert match_cameras(TWO, None) == ("top", "wrist")
    assert match_cameras(TWO, ["top", "wrist"]) == ("top", "wrist")
    assert match_cameras(TWO, TWO) == TWO
    assert match_cameras(("wrist_left", "wrist_right"), None) == ("wrist_left", "wrist_right")
    assert match_cameras(("front", "side"), {"front": "top", "side": "wrist"}) == ("top", "wrist")
    assert match_cameras(TWO, {"image_cam_0": "wrist", "image_cam_1": "top"}) == ("wrist", "top")  # said outright


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["wrist", "top"], "camera 0 of the checkpoint is image_cam_0 .top view., not 'wrist'"),
        (["image_cam_1", "image_cam_0"], "order is image_cam_0"),
        (["wrist_cam", "top_cam"], "camera 0"),
        (["top", "top"], "camera 1"),
        (["top"], "1 cameras are given"),
        (["top", "wrist", "side"], "3 cameras are given"),
        (["left", "right"], "cannot be told"),
        ({"image_cam_0": "top", "image_cam_1": "top"}, "same view"),
        ({"image_cam_0": "top"}, "has image_cam_0; the checkpoint's cameras are image_cam_0, image_cam_1. Map each"),
        ({"front": "top"}, "camera map has front.*--camera-map image_cam_0=top image_cam_1=wrist"),
        ("top", "list of names"),
    ],
)
def test_swapped_or_wrong_cameras(given, message):
    with pytest.raises(ConfigError, match=message):
        match_cameras(TWO, given)

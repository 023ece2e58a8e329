"""`so101 render`, and the settings of the benches with pictures."""

import re
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from bench.cameras import CamerasConfig
from bench.fps import FpsConfig
from mjx_so101 import ConfigError
from mjx_so101.render import RenderConfig, make_renderer
from train.cli import main
from train.pictures import RenderFlags

# -- so101 render --------------------------------------------------------------------------------------------------
TINY = ["--num-envs", "2", "--width", "32", "--height", "24", "--steps", "2", "--detail", "coarse"]


@pytest.mark.slow
def test_render_writes_a_contact_sheet(tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    main(["render", *TINY, "--camera", "top", "wrist", "--out", str(out)])
    picture = imageio.imread(out)
    assert picture.shape == (24 + 2, 2 * 2 * (32 + 2), 3)
    for column in (0, 34, 68, 102):
        assert np.ptp(picture[:24, column : column + 32].reshape(-1, 3), axis=0).min() > 30
    assert (picture[:24, :32] != picture[:24, 68:100]).any()  # two environments
    assert f"{out}: 2 environments, top and wrist, 32 x 24" in capsys.readouterr().out


@pytest.mark.slow
def test_render_compares_renderers(tmp_path, capsys):
    out = tmp_path / "compared.png"
    main(["render", *TINY, "--camera", "top", "--compare", "--no-shadows", "--out", str(out)])
    differences = dict(
        re.findall(r"(\w+) against mujoco: mean absolute difference ([\d.]+) of 255", capsys.readouterr().out)
    )
    assert set(differences) == {"quad", "warp"} and max(map(float, differences.values())) <= 12
    assert imageio.imread(out).shape == (2 * (24 + 2), 5 * (32 + 2), 3)  # three pictures, two differences


@pytest.mark.slow
def test_render_says_first_what_a_renderer_lacks(tmp_path, capsys, monkeypatch):
    """Not that it could not vary the looks, which would not matter without it."""
    monkeypatch.setattr("mjx_so101.render.madrona.missing_requirement", lambda: "package madrona is missing.")
    out = tmp_path / "compared.png"
    main(["render", *TINY, "--camera", "top", "--compare", "--randomize", "--out", str(out)])
    assert "without madrona: package madrona is missing.\n" in capsys.readouterr().err


def test_render_randomizes_looks(tmp_path):
    pictures = []
    for flag in ("--no-randomize", "--randomize"):
        out = tmp_path / f"{flag}.png"
        main(["render", *TINY, "--camera", "top", flag, "--renderer", "mujoco", "--base", "zero", "--out", str(out)])
        pictures.append(imageio.imread(out).astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() > 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-envs", "0"], "num_envs is 0; it must be at least 1"),
        (["--num-envs", "many"], "--num-envs"),
        (["--camera", "front"], "camera 'front' is unknown; valid cameras are top, wrist"),
        (["--camera", "top", "top"], "name one twice"),
        (["--steps", "-1"], "steps is -1; it must be at least 0"),
        (["--width", "0"], "picture size is 0 x 24"),
        (["--renderer", "vulkan"], "renderer is 'vulkan'; choose one of 'auto', 'quad', 'warp', 'madrona', 'mujoco'"),
        (["--detail", "medium"], "detail is 'medium'; choose one of 'fine', 'coarse'"),
        (["--base", "jacobean"], "base is 'jacobean'"),
        (["--zoom", "2"], "--zoom"),
    ],
)
def test_render_refuses_bad_flags(tmp_path, capsys, flags, words):
    out = tmp_path / "never.png"
    with pytest.raises(SystemExit) as stopped:
        main(["render", *TINY, *flags, "--out", str(out)])
    assert stopped.value.code == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in message
    assert not out.exists()


# -- benches -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "bad", "words"),
    [
        (FpsConfig, {"obs": "video"}, "obs is 'video'; choose one of 'state', 'rgb'"),
        (FpsConfig, {"obs": "rgb", "render": RenderConfig("madrona"), "num_envs": (8, 16)}, "madrona.*one num_envs"),
        (CamerasConfig, {"size": ("64x64",)}, "4 num_envs for 1 sizes"),
        (CamerasConfig, {"size": ("64",), "num_envs": (8,)}, "size '64' is not WIDTHxHEIGHT"),
        (CamerasConfig, {"size": ("64xwide",), "num_envs": (8,)}, "size '64xwide' is not WIDTHxHEIGHT"),
        (CamerasConfig, {"size": ("x64",), "num_envs": (8,)}, "size 'x64' is not WIDTHxHEIGHT"),
        (CamerasConfig, {"cameras": (1, 3)}, r"cameras is \(1, 3\); give 1"),
        (CamerasConfig, {"cameras": ()}, r"cameras is \(\); give 1"),
        (CamerasConfig, {"size": (), "num_envs": ()}, "size or renderer is empty"),
        (CamerasConfig, {"size": ("0x0",), "num_envs": (8,)}, "picture size is 0 x 0"),
        (CamerasConfig, {"size": ("8x8",), "num_envs": (-4,)}, "num_envs is .*at least 1"),
        (CamerasConfig, {"renderer": ("foo",)}, "renderer is 'foo'; choose one of"),
        (CamerasConfig, {"physics": "foo"}, "physics is 'foo'; choose one of"),
        (CamerasConfig, {"detail": "foo"}, "detail is 'foo'; choose one of 'fine', 'coarse'"),
        (CamerasConfig, {"steps": 0}, "steps is 0"),
        (RenderConfig, {"cameras": "top"}, "cameras is 'top'; give a tuple"),
        (RenderConfig, {"cameras": ()}, "give a tuple of at least one name"),
        (RenderConfig, {"width": 16.5}, "picture size is 16.5 x 64"),
        (RenderConfig, {"width": "16"}, "picture size is '16' x 64"),
        (
            make_renderer,
            {"config": "gr00t"},
            "config is 'gr00t'; give a RenderConfig, such as one of PRESETS: small, gr00t",
        ),
        (make_renderer, {"config": RenderConfig(), "scene": 3}, "scene is a int; give a SceneConfig"),
        (RenderFlags, {"out": Path("sheet")}, "out is 'sheet'; give a file that ends in .png"),
        (RenderFlags, {"out": Path(".")}, "give a file that ends in .png"),
    ],
)
def test_bad_bench_settings_are_refused(kind, bad, words):
    with pytest.raises(ConfigError, match=words):
        kind(**bad)

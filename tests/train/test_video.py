"""Videos: which episodes they show, what is written beside them, and what is refused."""

import dataclasses

import imageio.v2 as imageio
import numpy as np
import pytest

from mjx_so101 import ConfigError
from train import video
from train.evaluate import Episodes
from train.flags import EvalFlags, PlayFlags


class Painter:
    """Renderer whose pictures have the grey level of the state's first number."""

    def __init__(self, width, height, **_):
        self.size, self.drawn = (height, width, 3), []

    def picture(self, qpos, camera):
        self.drawn.append((qpos[0], camera))
        return np.full(self.size, qpos[0], np.uint8)

    def close(self):
        pass


class Canned:
    """Stands for a file of imageio; keeps the frames."""

    files = {}  # noqa: RUF012

    def __init__(self, path):
        self.frames = self.files[path.name] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def append_data(self, frame):
        self.frames.append(frame)


@pytest.fixture
def shown(monkeypatch):
    """Function that writes videos of episodes and gives the files' frames by name; nothing is really drawn."""
    painters = []
    monkeypatch.setattr(video, "MujocoRenderer", lambda **k: painters.append(Painter(**k)) or painters[-1])
    monkeypatch.setattr(video.imageio, "get_writer", lambda path, **_: Canned(path))

    def write(episodes, folder, **options):
        Canned.files = {}
        painters.clear()
        return video.write_videos(episodes, folder, **options), Canned.files, painters

    return write


@pytest.fixture
def make_episodes():
    """Function from a row of `at_end` at 5 mm to Episodes; episode i is drawn with the grey level 10 (i + 1)."""

    def make(at_end, kept=None):
        n = len(at_end)
        column = np.array(at_end)[:, None]
        level = 10.0 * (1 + np.arange(kept or n))
        return Episodes(
            succeeded=column, at_end=column, success_step=np.where(column, 50, -1), start_distance=np.full(n, 0.1),
            final_distance=np.zeros(n), final_yaw=np.zeros(n), total_reward=np.zeros(n), residual=np.zeros(n),
            residual_rms=np.zeros(n), invalid=np.zeros(n, bool), bad_target=np.zeros(n, bool),
            nonfinite=np.zeros(n, bool), overflow=np.zeros(n, bool), tolerances=(0.005,), seconds=1.0,
            qpos=np.tile(level[None, :, None], (7, 1, 9)).astype(np.float32),
        )  # fmt: skip

    return make


def levels(frame, tiles, columns):
    """Grey levels of the tiles of a grid's frame."""
    rows = [np.split(row, columns, axis=1) for row in np.split(frame, -(-tiles // columns), axis=0)]
    return [int(tile[0, 0, 0]) for row in rows for tile in row]


def test_first_episodes_are_shown_whatever_became_of_them(shown, make_episodes, tmp_path):
    episodes = make_episodes([False, True, True, False, True, False])
    paths, files, _ = shown(episodes, tmp_path / "new", tiles=4)
    assert [path.name for path in paths] == ["episode.mp4", "grid.mp4", "failures.mp4", "videos.md"]
    assert {len(frames) for frames in files.values()} == {3}  # every third of seven states
    assert files["episode.mp4"][0].shape == (480, 640, 3) and files["episode.mp4"][0][0, 0, 0] == 10  # it failed
    assert levels(files["grid.mp4"][0], 4, 2) == [10, 20, 30, 40]
    assert levels(files["failures.mp4"][0], 3, 2) == [10, 40, 60, 0]


def test_each_episode_is_drawn_once(shown, make_episodes, tmp_path):
    _, _, (small, large) = shown(make_episodes([False, True, False]), tmp_path, tiles=3)
    assert [level for level, _ in small.drawn] == [10, 20, 30] * 3
    assert large.drawn == [(10, "scene")] * 3


def test_without_failures_there_is_no_video_of_them(shown, make_episodes, tmp_path):
    (tmp_path / "failures.mp4").write_text("of an earlier evaluation")
    paths, _, _ = shown(make_episodes([True, True]), tmp_path)
    assert [path.name for path in paths] == ["episode.mp4", "grid.mp4", "videos.md"]
    assert not (tmp_path / "failures.mp4").exists()


def test_an_episode_that_left_again_is_a_failure(shown, make_episodes, tmp_path):
    episodes = dataclasses.replace(make_episodes([True, True]), at_end=np.array([[True], [False]]))
    _, files, _ = shown(episodes, tmp_path)
    assert levels(files["failures.mp4"][0], 1, 1) == [20]
    assert "has left again" in (tmp_path / "videos.md").read_text()


def test_only_counted_episodes_whose_states_were_kept_are_drawn(shown, make_episodes, tmp_path):
    episodes = make_episodes([True, False, False, False], kept=2)  # the first batch had two
    _, files, _ = shown(episodes, tmp_path)
    assert levels(files["grid.mp4"][0], 2, 2) == [10, 20]
    assert levels(files["failures.mp4"][0], 1, 1) == [20]
    episodes = make_episodes([True], kept=2)  # a batch filled up with one that does not count
    _, files, _ = shown(episodes, tmp_path)
    assert levels(files["grid.mp4"][0], 1, 1) == [10]


def test_captions_say_which_episode_is_where(shown, make_episodes, tmp_path):
    shown(make_episodes([False, True, False]), tmp_path)
    lines = (tmp_path / "videos.md").read_text().splitlines()
    assert lines[2:] == [
        "| episode.mp4 | 1, 1 | 0 | never within 5 mm |",
        "| grid.mp4 | 1, 1 | 0 | never within 5 mm |",
        "| grid.mp4 | 1, 2 | 1 | within 5 mm after 50 steps, stays |",
        "| grid.mp4 | 2, 1 | 2 | never within 5 mm |",
        "| failures.mp4 | 1, 1 | 0 | never within 5 mm |",
        "| failures.mp4 | 1, 2 | 2 | never within 5 mm |",
    ]


@pytest.mark.parametrize("number", [0, -1, 101])
@pytest.mark.parametrize("flags", [EvalFlags, PlayFlags])
def test_impossible_grids_are_refused(shown, make_episodes, tmp_path, flags, number):
    message = f"video_episodes is {number}; give 1 to 100"
    with pytest.raises(ConfigError, match=message):
        shown(make_episodes([True]), tmp_path, tiles=number)
    with pytest.raises(ConfigError, match=message):
        flags(video_episodes=number)


def test_missing_ffmpeg_is_named(monkeypatch, make_episodes, tmp_path):
    def get_writer(*_, **__):
        raise ImportError("To use the imageio ffmpeg plugin you need to 'pip install imageio-ffmpeg'")

    monkeypatch.setattr(video.imageio, "get_writer", get_writer)
    with pytest.raises(ConfigError, match=r"grid.mp4 cannot be written.*pip install 'imageio\[ffmpeg\]'"):
        video.write_videos(make_episodes([True]), tmp_path)


@pytest.mark.filterwarnings("ignore:os.fork")  # by the reader
def test_videos_are_files_that_play(make_episodes, tmp_path):
    """Drawn and written for real, with two frames."""
    episodes = make_episodes([True, False])
    episodes = dataclasses.replace(episodes, qpos=np.zeros((4, 2, 9), np.float32))
    paths = video.write_videos(episodes, tmp_path, tiles=2)
    sizes = {}
    for path in paths[:-1]:
        with imageio.get_reader(path) as file:
            assert (file.count_frames(), file.get_meta_data()["fps"]) == (2, 10)
            sizes[path.name] = file.get_data(0).shape
            assert file.get_data(0).std() > 10  # not blank
    assert sizes == {"episode.mp4": (480, 640, 3), "grid.mp4": (150, 400, 3), "failures.mp4": (150, 200, 3)}

"""The report of the gate: what the cameras see, what to try, report.json, report.md and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError, HealthError
from mjx_so101.render import RenderConfig, check_pictures, make_renderer
from mjx_so101.render.sheet import contact_sheet, save_png
from mjx_so101.scene import CAMERAS
from mjx_so101.task import State
from policies.base import BasePolicy
from train.evaluate import Episodes
from train.files import write_text
from train.gate_trial import JUMP
from train.gate_verdict import GAINED_SHARE, NEAR_SHARE, PROCEED_ABOVE, STOP_BELOW
from train.outcomes import table
from train.provenance import commit_in_words
from train.report import TRUE_POSE, faults, rate, video_links
from train.video import write_videos

BRIGHTNESS_OFF = 30.0
"""Grey levels (of 255) between pictures and training data that are worth a warning."""
ASPECT = 4 / 3
"""Of the cameras of the SO-101's training data."""
_SAMPLES = 4  # episodes in frames.png
_GREY = (0.299, 0.587, 0.114)  # Rec. 601, as PIL and OpenCV convert to grey


# -- what the cameras see ----------------------------------------------------------------------------------------------
class Views:
    """The pictures that a base policy gets (`cameras`, `pictures`), or for one that gets none, those it would get."""

    def __init__(self, base: BasePolicy, env: PaperReturnEnv, expected_brightness: tuple[float, ...] = ()):
        """Raises ConfigError unless there are no, or as many, expected grey levels as the base has cameras."""
        self._pictures = getattr(base, "pictures", None)
        self.cameras = tuple(base.cameras) if self._pictures else CAMERAS
        self._env, self._expected = env, expected_brightness
        if expected_brightness and not self._pictures:
            raise ConfigError(
                f"expected_brightness is {expected_brightness}, but base {base.name!r} sees no pictures; leave it out."
            )
        if expected_brightness and len(expected_brightness) != len(self.cameras):
            raise ConfigError(
                f"expected_brightness has {len(expected_brightness)} values; base {base.name!r} has "
                f"{len(self.cameras)} cameras: give one grey level for each of {', '.join(self.cameras)}."
            )

    def _seen(self, state: State) -> np.ndarray:
        """uint8 [n, camera, height, width, 3] that the base gets of the first n environments."""
        rgb = np.asarray(self._pictures(state))
        if rgb.ndim != 5 or rgb.shape[1] != len(self.cameras) or rgb.shape[4] != 3 or rgb.dtype != np.uint8:
            raise ConfigError(
                f"the base policy's pictures are {rgb.dtype} {list(rgb.shape)}; they must be uint8 [environment, "
                f"{len(self.cameras)}, height, width, 3] for cameras {', '.join(self.cameras)}."
            )
        return rgb

    def _drawn(self, state: State, count: int, width: int = 320, height: int = 240) -> np.ndarray:
        """The same of `count` environments, for a base that gets none. Raises ConfigError where nothing can draw."""
        config = RenderConfig(cameras=tuple(self.cameras), width=width, height=height)
        renderer = make_renderer(config, self._env.scene, count)
        try:
            return np.asarray(renderer.render(state, np.arange(count)))
        finally:
            renderer.close()

    def check(self, start: State) -> None:
        """Raise HealthError if a picture that the base gets shows one colour only, or two cameras show the same."""
        if not self._pictures:
            return
        rgb = self._seen(start)
        check_pictures(rgb, self.cameras)
        for i, name in enumerate(self.cameras):
            for j in range(i):
                if (rgb[:, i] == rgb[:, j]).all():
                    raise HealthError(
                        f"cameras {self.cameras[j]!r} and {name!r} give the same pictures in all {len(rgb)} "
                        "environments; give the base policy each camera of its own."
                    )

    def measure(self, moments: list[State], frames: Path | None) -> dict[str, Any]:
        """Checks of the base's pictures ('images', None if it gets none), and sample frames saved to `frames`.

        'frames' is the file's name, or says in 'without_frames' why there is none.
        """
        images, samples = None, []
        if self._pictures:
            levels = []
            for state in moments:
                rgb = self._seen(state)
                levels.append(rgb.mean((0, 2, 3)) @ np.array(_GREY))  # [camera]
                samples.append(rgb[:_SAMPLES])
            images = self._judge(np.mean(levels, 0), moments[0], samples[0])
        record = {"images": images, "frames": None, "without_frames": None if frames else "not asked for"}
        if frames:
            try:
                count = min(_SAMPLES, self._env.num_envs)
                samples = samples or [self._drawn(state, count) for state in moments]
                cells = np.stack(samples, 1)  # [env, moment, camera, height, width, 3]
                save_png(frames, contact_sheet(cells.reshape(-1, *cells.shape[2:]), columns=len(moments)))
                record["frames"] = frames.name
            except ConfigError as error:
                record["without_frames"] = str(error)
        return record

    def _judge(self, levels: np.ndarray, start: State, rgb: np.ndarray) -> dict[str, Any]:
        height, width = rgb.shape[2:4]
        problems, cameras = [], {}
        if abs(width / height / ASPECT - 1) > 0.01:
            problems.append(
                f"pictures are {width} x {height}, an aspect of {width / height:.2f}; training data is usually 4:3"
            )
        for i, (name, level) in enumerate(zip(self.cameras, levels, strict=True)):
            expected = self._expected[i] if self._expected else None
            cameras[name] = {"brightness": float(level), "expected_brightness": expected}
            if expected is not None and abs(level - expected) > BRIGHTNESS_OFF:
                problems.append(
                    f"camera {name!r} has a mean grey level of {level:.0f}, its training data {expected:.0f}: change "
                    "the lamp, the table's colour or the exposure"
                )
        order, wrong = self._order(start, rgb)
        return {"cameras": cameras, "width": width, "height": height, "order": order, "problems": problems + wrong}

    def _order(self, start: State, rgb: np.ndarray) -> tuple[str, list[str]]:
        """Whether each picture looks most like what MuJoCo's renderer draws for its camera's name."""
        if len(self.cameras) < 2:
            return "one camera", []
        if unknown := set(self.cameras) - set(self._env.scene.camera_names):
            return f"not checked: {', '.join(sorted(unknown))} not in the scene", []
        try:
            drawn = self._drawn(start, len(rgb), rgb.shape[3], rgb.shape[2]).astype(np.int16)
        except ConfigError as error:
            return f"not checked: {error}", []
        far = [[np.abs(rgb[:, i] - drawn[:, j]).mean() for j in range(len(self.cameras))] for i in range(rgb.shape[1])]
        wrong = [
            f"the picture of camera {name!r} looks like that of {self.cameras[like]!r}: check the order of the cameras"
            for name, like in zip(self.cameras, np.argmin(far, 1), strict=True)
            if self.cameras[like] != name
        ]
        return "wrong" if wrong else "as named", wrong


# -- what to try -------------------------------------------------------------------------------------------------------
def advice(report: dict[str, Any], verdict_tolerance_mm: float) -> list[str]:
    """What the measurements suggest, the most likely fault first."""
    actions, results, lines = report["actions"], report["results"], []
    lines += [f"Pictures: {problem}." for problem in (report["images"] or {"problems": []})["problems"]]
    if actions["clipped"] > 0.05:
        worst = max(actions["joints"], key=lambda name: actions["joints"][name]["clipped"])
        lines.append(
            f"{actions['clipped']:.0%} of the targets lie outside the joint limits and are clipped, most of {worst}: "
            "check the joint map (order, signs, offsets, degrees or radians)."
        )
    if (actions["outside_training"] or 0.0) > 0.05:
        lines.append(
            f"{actions['outside_training']:.0%} of the targets lie outside the range of the training data: check that "
            "the statistics and the joint map belong to this checkpoint."
        )
    if actions["jumps"] > 0.01:
        lines.append(
            f"Targets jump by more than {JUMP} rad in {actions['jumps']:.1%} of the steps: check the units of the "
            "joint map, and how many actions of a chunk are executed."
        )
    if actions["moved_rad"] < 0.01:
        lines.append("The base does not move the arm: check its state, pictures, instruction and statistics.")
    if results["bad_target_episodes"]:
        lines.append(
            f"The base asked for targets that are not finite in {results['bad_target_episodes']} of "
            f"{results['episodes']} episodes, first for {actions['first_bad_target']}: they count as invalid, which is "
            "no success. Check the weights, the number format and the statistics of the base policy."
        )
    failed = results["nonfinite_episodes"] - results["bad_target_episodes"]
    if failed + results["overflow_episodes"]:
        lines.append(
            f"The simulation failed in {failed} episodes (NaN) and had a full buffer in "
            f"{results['overflow_episodes']}: their results count for little."
        )
    rates = {float(mm): entry["rate"] for mm, entry in results["success"].items()}
    loosest, rate = max(rates), rates[min(rates, key=lambda mm: abs(mm - verdict_tolerance_mm))]
    if loosest > verdict_tolerance_mm and rates[loosest] >= rate + 0.2:
        lines.append(
            f"The sheet is within {loosest:g} mm in {rates[loosest]:.0%} of the episodes and within "
            f"{verdict_tolerance_mm:g} mm in {rate:.0%}: it arrives and lacks the last millimetres, which a residual "
            "can correct."
        )
    return lines


# -- files -------------------------------------------------------------------------------------------------------------
def write(report: dict[str, Any], out: Path) -> None:
    """Write report.json and report.md into `out`."""
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(out / "report.md", markdown(report))


def add_videos(report: dict[str, Any], episodes: Episodes, out: Path, tiles: int) -> None:
    """Write the videos of `episodes` into `out` and name them in `report`, or say why there are none."""
    try:
        report["videos"] = [path.name for path in write_videos(episodes, out, tiles)]
    except ConfigError as error:
        report["without_videos"] = str(error)
        print(f"No videos: {error}")


def markdown(report: dict[str, Any]) -> str:
    """The report as text, the verdict first."""
    v, results, env = report["verdict"], report["results"], report["environment"]
    parts = [
        f"# Gate of {report['base']}: {v['text']}",
        *([f"**{report['note']}**"] if report["note"] else []),
        f"The frozen base policy alone (alpha 0) solved **{rate(v['success'])}** of {v['episodes']} episodes within "
        f"{v['tolerance_mm']:g} mm; {v['progress']} (95 % Wilson intervals). Above {PROCEED_ABOVE:.0%} is PROCEED. "
        f"Below {STOP_BELOW:.0%} is STOP, unless there is progress ({NEAR_SHARE:.0%} of the one or "
        f"{GAINED_SHARE:.0%} of the other): CAUTION, as all others. Suggested `--alpha {v['suggested_alpha']}`.",
        f"The base sees {', '.join(report['saw']['base']) or 'nothing'}"
        + (f" ({TRUE_POSE})." if "sheet_pose" in report["saw"]["base"] else "."),
        "\n".join(["## What to try", "", *(f"- {line}" for line in v["advice"])]),
        "## Success\n\n" + _rows(
            ["tolerance", "success", "at the end", "median steps"],
            [
                [f"{mm} mm", rate(e), rate(results["success_at_end"][mm]), _number(e["median_steps"], ".0f")]
                for mm, e in results["success"].items()
            ],
        ),
        f"At the end the sheet's centre is {results['final_distance_mm']:.1f} mm from the goal and turned by "
        f"{results['final_yaw_deg']:.1f} degrees (means), and {results['median_gained_mm']:.1f} mm nearer than at the "
        f"start (median). Episodes with faults: {faults(results)}.",
        _actions(report["actions"]),
        _speed(report["speed"]),
        _pictures(report),
        "## How it was run\n\n"
        f"Command `{report['command']}`, {commit_in_words(report)}, {report['device']}, physics {env['physics']}, "
        f"randomization {env['randomization']['name']}, {env['sheet_friction']} sheet, seed "
        f"{report['settings']['seed']}, {report['speed']['batch']} episodes at once.",
        f"## Episodes\n\n{table(report['episodes'])}",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _rows(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _span(pair: list[float] | list[None] | None) -> str:
    return "-" if pair is None or pair[0] is None else f"{pair[0]:.2f} to {pair[1]:.2f}"


def _actions(actions: dict[str, Any]) -> str:
    rows = [
        [name, _span([j["min"], j["max"]]), _span([j["p1"], j["p99"]]), _span(j["limits"]), f"{j['clipped']:.1%}",
         _span(j["training_range"]), _number(j["outside_training"], ".1%")]
        for name, j in actions["joints"].items()
    ]  # fmt: skip
    head = ["joint", "targets, rad", "1st to 99th percentile", "limits", "clipped", "training data", "outside it"]
    return (
        f"## Joint targets\n\n{_rows(head, rows)}\n\n{actions['clipped']:.1%} of all targets lie outside the joint "
        f"limits and were clipped ({actions['steps_clipped']:.1%} of the steps have one); a target jumps by more than "
        f"{JUMP} rad in {actions['jumps']:.1%} of the steps."
    )


def _speed(speed: dict[str, Any]) -> str:
    own = speed["inference"]
    text = (
        f"## Speed\n\n{speed['control_steps_per_second']:,.0f} control steps/s with {speed['batch']} environments, "
        f"{1000 * speed['seconds_per_batch_step']:.1f} ms a step of all of them, "
        f"{'compilation included' if speed['with_compilation'] else 'without compilation'}; {speed['seconds']:.0f} s "
        "in all. "
    )
    if own is None:
        return text + "The base runs inside the control step, so it has no latency of its own."
    return text + (
        f"The base made {_number(own['inferences'], ',.0f')} inferences; it makes "
        f"{_number(own['inferences_per_s'], ',.1f')} a second, median latency "
        f"{_number(own['latency_s_median'], '.4f')} s."
    )


def _pictures(report: dict[str, Any]) -> str:
    images, lines = report["images"], ["## Pictures", ""]
    if images is None:
        lines.append("The base gets no pictures; the frames show what cameras would see.")
    else:
        levels = ", ".join(
            f"{name} {c['brightness']:.0f}"
            + ("" if c["expected_brightness"] is None else f" (training data {c['expected_brightness']:.0f})")
            for name, c in images["cameras"].items()
        )
        lines.append(
            f"{images['width']} x {images['height']}, order of the cameras: {images['order']}. Mean grey levels: "
            f"{levels}."
        )
        lines += [f"\nWarning: {problem}." for problem in images["problems"]]
    lines.append("")
    if report["frames"]:
        lines.append(f"One episode a row: start, middle, end.\n\n![sample frames]({report['frames']})")
    else:
        lines.append(f"No sample frames: {report['without_frames']}.")
    lines += video_links(report["videos"])
    return "\n".join(lines)

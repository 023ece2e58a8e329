"""`so101 compare`: what stands in its table and plot, and which runs it does not put side by side."""

import copy
import json

import imageio.v2 as imageio
import pytest

from mjx_so101 import CheckpointError, ConfigError
from train import compare
from train.compare import compare_runs, differences, read_report


def entry(rate):
    return {"rate": rate, "low": rate - 0.03, "high": rate + 0.01}


def summary(held, at_end, episodes=512):
    return {
        "episodes": episodes, "success": {"5": entry(held)}, "success_at_end": {"5": entry(at_end)},
        "final_distance_mm": 10 * (1 - held), "mean_residual_rad": 0.0123, "mean_return": 2.5,
    }  # fmt: skip


REPORT = {
    "config": {"base": "jacobian"},
    "environment": {"randomization": {"name": "plain"}, "physics": "native"},
    "task": {"episodes": 512, "seed": 2, "sheet_friction": "dry", "rules": {"report_tolerances": [0.005]},
             "ranges": {"kp_scale": [1.0, 1.0]}},
    "saw": {"actor": ["joints", "sheet_pose"], "base": ["joints", "sheet_pose"], "critic": []},
    "results": {"base": summary(0.25, 0.2), "mean": summary(0.95, 0.9)},
    "evaluations": [{"steps": 0, **summary(0.25, 0.2)}, {"steps": 100, **summary(0.95, 0.9)}],
    "steps": 5120, "seconds": {"total": 90.0}, "peak_memory_bytes": 2e9,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Function that writes the report of a run, values changed by their dotted names, and gives its folder."""

    def make(name, changes=None):
        report = copy.deepcopy(REPORT)
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place = report
            for parent in parents:
                place = place[parent]
            place[last] = value
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
        return tmp_path / name

    return make


def test_table_shows_intervals_episodes_and_residual(write, tmp_path):
    runs = [write("a"), write("b", {"config.base": "oracle", "environment.physics": "warp"})]
    text = compare_runs(runs, tmp_path / "new" / "comparison")
    assert (tmp_path / "new" / "comparison" / "comparison.md").read_text() == text + "\n"
    head, _, first, second, *note = text.splitlines()
    assert len({line.count("|") for line in (head, first, second)}) == 1
    cells = dict(zip(head.split(" | "), first.split(" | "), strict=True))
    assert cells["5 mm, held"] == "25.0% (22.0%-26.0%) -> 95.0% (92.0%-96.0%)"
    assert cells["5 mm, at the end"] == "20.0% (17.0%-21.0%) -> 90.0% (87.0%-91.0%)"
    assert (cells["episodes"], cells["residual mrad"]) == ("512", "12.3")
    assert (cells["distance mm"], cells["steps"], cells["minutes"]) == ("7.5 -> 0.5", "5,120", "1.5")
    assert "oracle" in second and "warp" in second
    assert "Wilson" in note[-1]
    assert imageio.imread(tmp_path / "new" / "comparison" / "comparison.png").std() > 0


def test_base_that_sees_what_the_actor_does_not_is_named(write, tmp_path):
    text = compare_runs([write("a"), write("b", {"saw.actor": ["joints", "pictures"]})], tmp_path / "out")
    lines = text.splitlines()
    assert "| joints, sheet_pose |" in lines[2] and "true pose" not in lines[2]
    assert "| joints, pictures; base sees the true pose |" in lines[3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task.episodes": 4}, "episodes: 512 in {a}; 4 in {b}"),
        ({"task.seed": 3}, "seed: 2 in {a}; 3 in {b}"),
        ({"task.sheet_friction": "viscous"}, 'sheet_friction: "dry" in {a}; "viscous" in {b}'),
        ({"task.ranges.kp_scale": [0.5, 1.0]}, "ranges.kp_scale: [1.0, 1.0] in {a}; [0.5, 1.0] in {b}"),
        ({"task.rules.report_tolerances": [0.003]}, "rules.report_tolerances: [0.005] in {a}; [0.003] in {b}"),
        ({"task.rules.home": [0.0]}, "rules.home: not recorded in {a}; [0.0] in {b}"),
    ],
)
def test_runs_of_different_tasks_are_refused_unless_mixed(write, tmp_path, change, said):
    runs = [write("a"), write("b", change)]
    said = said.format(a=runs[0], b=runs[1])
    with pytest.raises(ConfigError, match=r"not of one task(.|\n)*--mixed") as refused:
        compare_runs(runs, tmp_path / "out")
    assert f"\n  {said}\n" in str(refused.value)
    assert not (tmp_path / "out").exists()
    text = compare_runs(runs, tmp_path / "out", mixed=True)
    assert text.startswith(f"- Different tasks: {said}\n\n| run |")


def test_many_differences_are_cut_short():
    tasks = {name: {f"value{i}": i + add for i in range(30)} for name, add in (("a", 0), ("b", 1))}
    lines = differences(tasks)
    assert len(lines) == 13 and lines[-1] == "and 18 more"
    assert differences({"a": tasks["a"], "b": dict(tasks["a"])}) == []


def test_mixed_tolerances_share_a_table(write, tmp_path):
    def only(mm):
        return {f"results.{who}.{kind}": {mm: entry(0.5)} for who in ("base", "mean")
                for kind in ("success", "success_at_end")}  # fmt: skip

    text = compare_runs([write("a"), write("b", only("3"))], tmp_path / "out", mixed=True)
    first, second = text.splitlines()[2:4]
    assert first.count("| - | - |") == second.count("| - | - |") == 1
    assert "no tolerance in common" in text
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_plot_explains_dashes_and_bands(write, tmp_path, monkeypatch):
    legends, styles, bands = [], [], []
    axes = compare.plt.Axes
    drawn = {name: getattr(axes, name) for name in ("legend", "axhline", "fill_between")}
    monkeypatch.setattr(
        axes, "axhline", lambda self, *a, **k: styles.append(k["ls"]) or drawn["axhline"](self, *a, **k)
    )
    monkeypatch.setattr(
        axes, "fill_between", lambda self, *a, **k: bands.append(a) or drawn["fill_between"](self, *a, **k)
    )

    def legend(self, *given, **options):
        legends.append(list(self.get_legend_handles_labels()[1]))
        return drawn["legend"](self, *given, **options)

    monkeypatch.setattr(axes, "legend", legend)
    compare_runs([write("a"), write("b")], tmp_path / "out")
    assert any("dashed: base alone" in text for text in legends[0]) and any("95 %" in text for text in legends[0])
    assert len(set(styles)) == 2  # lines at one height take turns
    assert bands[0][0] == [0, 100]
    assert bands[0][1] == pytest.approx([0.22, 0.92]) and bands[0][2] == pytest.approx([0.26, 0.96])


def test_run_without_a_report_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path} is not a run folder"):
        read_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{tmp_path} has no report.json.*--resume"):
        read_report(tmp_path)


@pytest.mark.parametrize("text", ['{"results": ', "[" * 100_000])
def test_damaged_report_is_named(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"report\.json is damaged.*--resume"):
        read_report(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"results": {}}', "3"])
def test_report_of_another_version_is_named(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"report\.json lacks .*task.*--resume"):
        read_report(tmp_path)


def test_comparison_of_a_missing_run_writes_nothing(write, tmp_path):
    run = write("a")
    with pytest.raises(CheckpointError):
        compare_runs([run, tmp_path / "none"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no run given"):
        compare_runs([], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"a is named twice; name each run folder once"):
        compare_runs([run, run / ".." / run.name], tmp_path / "out")
    assert not (tmp_path / "out").exists()

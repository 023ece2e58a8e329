"""The wheel and what it holds, the Makefile's refusals, the choice of JAX for a GPU, and compile caches."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mjx_so101
from train.hardware import CACHE_FOLDERS, choose_gpu_extra, set_caches

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mjx_so101", "policies", "train", "bench")
OLD_HEADER = "| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda} |"
NEW_HEADER = "| NVIDIA-SMI {driver}    KMD Version: {driver}    CUDA UMD Version: {cuda} |"


def write_script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_nvidia_smi(folder: Path, header: str, capabilities: str = "9.0", status: int = 0) -> None:
    """An nvidia-smi that prints `header`, or the GPUs' compute capabilities when it is asked for them."""
    write_script(
        folder / "nvidia-smi",
        f'if [ $# -gt 0 ]; then printf "{capabilities}\\n"; else printf "%s\\n" "{header}"; fi; exit {status}',
    )


@pytest.fixture
def only_path(tmp_path, monkeypatch) -> Path:
    """A folder that is the whole PATH, so that no real nvidia-smi is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


# -- which JAX fits the driver -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("header", "driver", "cuda", "capabilities", "expected"),
    [
        (OLD_HEADER, "580.65.06", "13.0", "9.0", "cuda13"),
        (NEW_HEADER, "610.57.04", "13.3", "9.0", "cuda13"),
        (OLD_HEADER, "550.54.14", "12.4", "9.0", "cuda12"),
        (OLD_HEADER, "525.60.13", "12.0", "8.0", "cuda12"),
        (OLD_HEADER, "580.65.06", "13.0", "7.5", "cuda13"),
        (OLD_HEADER, "580.65.06", "13.0", "7.0", "cuda12"),  # Volta, which CUDA 13 no longer supports
        (OLD_HEADER, "580.65.06", "13.0", "9.0\\n6.1", "cuda12"),
        (OLD_HEADER, "580.65.06", "13.0", "Field is not a valid field to query.", "cuda13"),
    ],
)
def test_extra_fits_the_driver(only_path, header, driver, cuda, capabilities, expected):
    fake_nvidia_smi(only_path, header.format(driver=driver, cuda=cuda), capabilities)
    choice = choose_gpu_extra()
    assert choice.name == expected
    assert not choice.warning


@pytest.mark.parametrize(
    ("header", "status", "words"),
    [
        (OLD_HEADER.format(driver="520.61.05", cuda="11.8"), 0, ["CUDA 11.8", "525"]),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, ["communicate", "525"]),
        ("", 6, ["exit status 6"]),
        ("bash: CUDA Version: N/A, %s {garbage}", 0, ["no CUDA version"]),
    ],
)
def test_unusable_gpu_gives_cpu_and_a_warning(only_path, header, status, words):
    fake_nvidia_smi(only_path, header, status=status)
    choice = choose_gpu_extra()
    assert choice.name == ""
    assert all(word in choice.warning for word in words), choice.warning


def test_nvidia_smi_that_cannot_be_run_gives_cpu_and_a_warning(only_path):
    (only_path / "nvidia-smi").write_bytes(b"\x00\x01 not a program")
    (only_path / "nvidia-smi").chmod(0o755)
    assert choose_gpu_extra().name == ""
    assert "nvidia-smi is there but failed" in choose_gpu_extra().warning


def test_no_nvidia_smi_is_no_gpu(only_path):
    choice = choose_gpu_extra()
    assert choice.name == choice.warning == ""


def run_hardware(*arguments: str) -> subprocess.CompletedProcess:
    """train/hardware.py on a Python that sees no installed package."""
    command = [sys.executable, "-I", "-S", str(ROOT / "train" / "hardware.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_hardware_runs_as_a_script_before_anything_is_installed(only_path):
    assert run_hardware("extra").stdout.strip() == ""
    fake_nvidia_smi(only_path, OLD_HEADER.format(driver="550.54.14", cuda="12.4"))
    assert run_hardware("extra").stdout == "cuda12\n"
    fake_nvidia_smi(only_path, OLD_HEADER.format(driver="520.61.05", cuda="11.8"))
    old = run_hardware("extra")
    assert (old.returncode, old.stdout.strip()) == (0, "")
    assert "warning: the NVIDIA driver is for CUDA 11.8" in old.stderr
    assert run_hardware("nonsense").returncode == 2


# -- compile caches ------------------------------------------------------------------------------------------------
@pytest.fixture
def no_caches(tmp_path, monkeypatch) -> Path:
    """An empty home, no cache set, and neither JAX nor Warp imported yet. Returns the home."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "WARP_CACHE_PATH", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that the test's own value is undone as well
        monkeypatch.delenv(name)
    for name in ("jax", "warp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_caches_go_below_home_and_leave_a_users_choice_alone(no_caches, monkeypatch):
    monkeypatch.setenv("WARP_CACHE_PATH", "/elsewhere")
    caches = set_caches()
    folder = Path(caches["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir()
    assert folder.is_relative_to(no_caches / ".cache" / "mjx_so101")
    assert caches["WARP_CACHE_PATH"] == os.environ["WARP_CACHE_PATH"] == "/elsewhere"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)


def test_caches_warn_when_too_late_or_not_writable(no_caches, monkeypatch):
    (no_caches / ".cache").write_text("a file, so that no folder can be made below it")
    with pytest.warns(UserWarning, match="no compile cache") as warned:
        assert set_caches() == {"JAX_COMPILATION_CACHE_DIR": "", "WARP_CACHE_PATH": ""}
    assert [name in str(warning.message) for warning, name in zip(warned, CACHE_FOLDERS, strict=True)] == [True, True]
    monkeypatch.setitem(sys.modules, "jax", sys)
    with pytest.warns(UserWarning, match="jax was imported before"):
        set_caches()


def test_tests_keep_what_they_compile_in_the_checkout():
    """Also in the commands that they start; processes side by side never share JAX's files."""
    own = ROOT / ".cache" / "tests"
    assert all(Path(os.environ[name]).is_relative_to(own) for name in (*CACHE_FOLDERS, "XDG_CACHE_HOME"))
    script = "import os, jax; print(jax.config.jax_compilation_cache_dir, os.environ['WARP_CACHE_PATH'])"
    jax_folder, warp_folder = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert jax_folder.endswith("jax-" + os.environ.get("PYTEST_XDIST_WORKER", "main"))
    assert (jax_folder, warp_folder) == tuple(os.environ[name] for name in CACHE_FOLDERS)


# -- the Makefile --------------------------------------------------------------------------------------------------
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@needs_make
@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("echo 3.9.2; exit 1", ["3.11 or newer", "3.9.2", "make PYTHON=python3.12 venv"]),
        ("exit 127", ["3.11 or newer", "not there"]),
        ('case "$2" in *ensurepip*) exit 1;; *) echo 3.12.4;; esac', ["apt-get install python3.12-venv"]),
    ],
)
def test_make_names_what_is_wrong_with_python(tmp_path, python, words):
    shutil.copy(ROOT / "Makefile", tmp_path)
    fake = write_script(tmp_path / "fake_python", python)
    made = subprocess.run(["make", f"PYTHON={fake}", "venv"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0
    assert all(word in made.stderr for word in words), made.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_follows_the_gpu_and_installs_only_when_something_changed(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    for file in ("Makefile", "pyproject.toml", "train/hardware.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    write_script(tmp_path / ".venv" / "bin" / "python", f'exec "{sys.executable}" "$@"')
    write_script(tmp_path / ".venv" / "bin" / "pip", "exit 1")
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def make_venv(header: str, status: int = 0) -> list[str]:
        """What `make venv` would ask of pip."""
        fake_nvidia_smi(tmp_path, header, status=status)
        command = ["make", "--silent", "venv", "PIP=echo pip"]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).splitlines()

    assert make_venv("", status=9) == ["pip install --editable .[dev]"]
    assert make_venv("CUDA Version: 12.4")[-1] == "pip install --editable .[dev,cuda12]"
    assert make_venv("CUDA Version: 12.4") == []
    assert make_venv("", status=9) == []  # a machine without a GPU, sharing this .venv
    removed, installed = make_venv("CUDA Version: 13.0")
    assert removed.startswith("pip uninstall") and removed.endswith("jax-cuda12-plugin jax-cuda12-pjrt")
    assert installed == "pip install --editable .[dev,cuda13]"
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert make_venv("CUDA Version: 13.0")[-1] == "pip install --editable .[dev,cuda13]"


# -- the wheel -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of this tree, built without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("assets", *PACKAGES):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-index"]
    built = subprocess.run([*pip, "--no-build-isolation", "-w", out, source], capture_output=True, text=True)
    assert built.returncode == 0, f"{built.stdout}\n{built.stderr}\n(hatchling comes with the dev extra)"
    return next(out.glob("*.whl"))


def test_wheel_holds_assets_packages_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"mjx_so101-{mjx_so101.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules <= names
    assert {"mjx_so101/assets/so101.xml", "mjx_so101/assets/desk.xml", f"{info}/licenses/LICENSE"} <= names
    assert "so101 = train.cli:main" in entry_points
    assert f"\nVersion: {mjx_so101.__version__}\n" in metadata
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}


def test_installed_wheel_finds_its_assets_and_imports_light(wheel, tmp_path):
    """Unpacked elsewhere, the library loads the scene from its own assets and imports neither torch nor brax."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, mjx_so101, mjx_so101.scene\n"
        "assert mjx_so101.load_model().nu == 6\n"
        "heavy = {'torch', 'brax', 'policies', 'train', 'bench'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "print(mjx_so101.scene.assets_dir())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "SO101_ASSETS"}
    environment["PYTHONPATH"] = str(tmp_path / "site")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()) == (tmp_path / "site" / "mjx_so101" / "assets").resolve()

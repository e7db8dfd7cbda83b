"""What an operator deploys: the ASGI module, the PM2 file, the unit and the image."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.origin import Origin
from firsttouch.auth import Key
from firsttouch.commands.sign import curl_command
from firsttouch.detect import BUNDLED_MODEL
from firsttouch.settings import PROFILES, Settings, load
from train.render import write_clip

MINER = Path(__file__).parent.parent / "miner"
NODE, NPM = shutil.which("node"), shutil.which("npm")

GUIDE_BLOCK = {
    "PARTIAL_DOWNLOAD": "1",
    "PARTIAL_DOWNLOAD_MB": "4",
    "DEVICE": "cuda",
    "IMG_SIZE": "416",
    "BATCH_SIZE": "32",
    "FRAME_STRIDE": "5",
    "PREFETCH_FRAMES": "128",
    "RAMP_UP": "1",
    "RAMP_UP_FIRST_BATCH": "2",
    "DISABLE_TRACKING": "1",
    "SKIP_PITCH": "1",
    "CONF_THRESHOLD": "0.5",
    "MAX_DETECTIONS": "80",
    "TIME_BUDGET_S": "2.0",
    "START_BUDGET_AFTER_FIRST_FRAME": "1",
    "EARLY_FLUSH_FIRST_FRAME": "1",
    "USE_NVDEC": "1",
}


def ecosystem(**environment: str) -> dict[str, object]:
    """The first app of the PM2 file, as node reads it."""
    script = "console.log(JSON.stringify(require('./ecosystem.config.js').apps))"
    env = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run([str(NODE), "-e", script], cwd=MINER, env=env, capture_output=True, text=True, check=True)
    [app] = json.loads(done.stdout)
    assert isinstance(app, dict)
    return app


@pytest.mark.skipif(NODE is None, reason="node is not here")
def test_the_pm2_file_is_the_guides() -> None:
    app = ecosystem()
    assert app["name"] == "sn44-miner"
    assert app["script"] == "uvicorn"
    assert app["args"] == "main:app --host 0.0.0.0 --port 7999"
    assert app["env"] == GUIDE_BLOCK


@pytest.mark.skipif(NODE is None, reason="node is not here")
@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ({"VERIFY_ENABLED": "false"}, "127.0.0.1"),
        ({"BLACKLIST_ENABLED": "0"}, "127.0.0.1"),
        ({"VERIFY_ENABLED": "1", "BLACKLIST_ENABLED": "true"}, "0.0.0.0"),
        ({"VERIFY_ENABLED": "0", "HOST": "0.0.0.0"}, "0.0.0.0"),
    ],
)
def test_where_strangers_may_ask_pm2_listens_on_loopback(environment: dict[str, str], host: str) -> None:
    assert f"--host {host} " in str(ecosystem(**environment)["args"])


@pytest.mark.skipif(NODE is None, reason="node is not here")
def test_a_profile_can_be_named_instead() -> None:
    assert ecosystem(PROFILE="complete")["env"] == {"PROFILE": "complete"}


def test_the_pm2_file_names_no_path_of_a_machine() -> None:
    text = re.sub(r"//.*", "", (MINER / "ecosystem.config.js").read_text())
    assert not re.search(r"['\"`]/\w|[A-Z]:\\", text)


def test_the_guides_block_is_valid_and_is_the_guide_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GUIDE_BLOCK.items():
        monkeypatch.setenv(name, value)
    settings = load(env_file=None)
    guide = Settings(**PROFILES["guide"].values)
    different = {f for f in Settings.model_fields if getattr(settings, f) != getattr(guide, f)}
    assert different <= {"device"}


def test_a_wrong_value_stops_the_start_with_what_is_allowed_and_no_traceback() -> None:
    env = os.environ | {"PARTIAL_DOWNLOAD_MB": "lots"}
    done = subprocess.run([sys.executable, "-c", "import main"], cwd=MINER, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PARTIAL_DOWNLOAD_MB='lots' (from the environment): must be a number from 0.01 to 1000" in done.stderr
    assert "hint: firsttouch config" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_unit_starts_the_same_app() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(MINER / "firsttouch.service")
    assert unit["Service"]["ExecStart"].endswith("uvicorn main:app --host 0.0.0.0 --port 7999")
    assert unit["Service"]["WorkingDirectory"].endswith("/miner")
    assert unit["Service"]["NoNewPrivileges"] == "yes"


def test_the_image_copies_only_what_is_there_and_does_not_run_as_root() -> None:
    text = (MINER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (MINER.parent / name).exists(), name
    assert re.search(r"^USER firsttouch$", text, re.MULTILINE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float) -> dict[str, object]:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                body = json.load(reply)
                assert isinstance(body, dict)
                return body
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="session")
def pm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """PM2 from npm and an environment in which its daemon lives in a folder of its own."""
    if NPM is None or NODE is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path_factory.mktemp("pm2")
    install = [NPM, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), "pm2@6"]
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"npm cannot install pm2 here: {type(error).__name__}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(folder), "PM2_HOME": str(folder / "home"), "PORT": str(free_port())}
    command = folder / "node_modules" / ".bin" / "pm2"
    yield command, env
    subprocess.run([command, "kill"], env=env, capture_output=True, timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_it_runs_under_a_real_pm2(pm2: tuple[Path, dict[str, str]]) -> None:
    command, env = pm2

    def run(*words: str, **extra: str) -> str:
        done = subprocess.run([command, *words], cwd=MINER, env=env | extra, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    local = {"VERIFY_ENABLED": "false", "BLACKLIST_ENABLED": "false"}
    run("start", "ecosystem.config.js", **local)
    try:
        body = wait_for(f"http://127.0.0.1:{env['PORT']}/availability", 30)
        assert set(body) == {"available"}
        run("restart", "sn44-miner", "--update-env", **local, TIME_BUDGET_S="1.5")
        wait_for(f"http://127.0.0.1:{env['PORT']}/availability", 30)
        [app] = json.loads(run("jlist"))
        assert app["pm2_env"]["status"] == "online"
        assert app["pm2_env"]["TIME_BUDGET_S"] == "1.5"
    finally:
        run("delete", "sn44-miner")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")
def test_a_signed_challenge_is_answered_under_pm2_as_the_readme_says(
    pm2: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    command, env = pm2
    clip, service = tmp_path / "clip.mp4", f"http://127.0.0.1:{env['PORT']}"
    write_clip(clip, frames=50, size=(640, 360), gop=25)
    miner = Key.throw_away().hotkey
    own = {
        "MINER_HOTKEY": miner,
        "BLACKLIST_ENABLED": "0",
        "ALLOW_PRIVATE_ORIGINS": "1",
        "PROFILE": "complete",
        "TIME_BUDGET_S": "20",
    }
    start = [command, "start", "ecosystem.config.js"]
    with Origin({"clip.mp4": clip}) as origin:
        subprocess.run(start, cwd=MINER, env=env | own, check=True, capture_output=True, timeout=60)
        try:
            assert wait_for(f"{service}/readyz", 60) == {"status": "ready"}
            printed = curl_command(service, origin.url("clip.mp4"), "pm2-1", miner, "fiber")
            sent = subprocess.run(["sh", "-c", printed], capture_output=True, timeout=60, check=True)
            answer = json.loads(sent.stdout)
            assert answer["challenge_id"] == "pm2-1"
            assert [frame["frame_number"] for frame in answer["frames"]] == list(range(50))
            again = subprocess.run(["sh", "-c", printed], capture_output=True, timeout=60, check=True)
            assert json.loads(again.stdout)["title"] == "RequestUnauthorized"  # replayed
        finally:
            subprocess.run([command, "delete", "sn44-miner"], env=env, capture_output=True, timeout=60)

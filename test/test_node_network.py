"""The running node: what it writes into the user's folders, and whom it calls."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from omni_process import SHORT, Client, OmniProcess, answer, engine_dir, ros, wait  # noqa: F401 - some are fixtures
from std_msgs.msg import String
from test_network import CI

HERE = re.compile(r"127\.|239\.255\.0\.1$|0\.0\.0\.0$")  # this host, and the group in which DDS finds its nodes


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_node_calls_nobody_but_dds_on_this_host(ros, engine_dir, tmp_path, monkeypatch):
    """From its start to 8 s after a turn: ONNX Runtime's telemetry asked for an address after 6 s."""
    for name in (*CI, "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    home, calls = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    client = Client("network")
    env = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "XDG_CONFIG_HOME": str(home / ".config")}
    process = OmniProcess(
        tmp_path / "log", "network", env=env, engine_dir=engine_dir, vad="energy", turn_detector="silence", **SHORT
    )
    strace = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        str(calls),
        "-p",
        str(process.process.pid),
    ]
    watching = subprocess.Popen(strace, stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: client.state == "idle" and client.connected, 60)
        client.prompt.publish(String(data="Who are you?"))
        answer(client)
        time.sleep(8)
        if watching.poll() is not None:
            pytest.skip(f"strace may not watch other processes here: {watching.stderr.read()}")
    finally:
        process.stop()
        watching.wait(10)
        client.close()
    seen = calls.read_text()
    addresses = set(re.findall(r'inet_addr\("([^"]+)"\)', seen)) | set(re.findall(r'inet_pton\(AF_INET6, "([^"]+)"', seen))
    assert addresses, "it must at least have called for others in its DDS domain"
    assert [address for address in addresses if not HERE.match(address)] == []
    assert "sin_port=htons(53)" not in seen
    assert [str(path) for path in Path(home).rglob("*") if path.is_file()] == []
    assert os.environ.get("HOME") != str(home)

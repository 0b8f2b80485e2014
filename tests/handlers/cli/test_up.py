"""`trunkline up` runs everything until it is stopped; other commands use the same data meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

from infra.servers.embedded_postgres import temporary_directory

TRUNKLINE = str(Path(sys.executable).with_name("trunkline"))
WITHOUT_URLS = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}


def test_it_serves_until_it_is_stopped_and_leaves_nothing_running() -> None:
    with temporary_directory() as directory:
        data = str(directory / "data")
        up = subprocess.Popen(
            [TRUNKLINE, "up", "--data", data],
            stdout=subprocess.PIPE,
            text=True,
            env=WITHOUT_URLS | {"TRUNKLINE_HTTP_PORT": "0"},
        )
        with up:
            assert up.stdout
            url = up.stdout.readline().split()[3].rstrip(";")
            health = httpx.get(f"{url}/health", trust_env=False).json()
            beside = subprocess.run(
                [TRUNKLINE, "show", "orders", "acme", "--json", "--data", data],
                capture_output=True,
                text=True,
                check=True,
                env=WITHOUT_URLS,
            )
            up.send_signal(signal.SIGTERM)

        assert health["ok"] is True
        assert json.loads(beside.stdout) == []
        assert up.returncode == 0
        assert not [process for process in psutil.process_iter(["cmdline"]) if data in str(process.info["cmdline"])]

"""Stand-ins for two programs of NVIDIA, so that MPS can be tested without a GPU: its control daemon, and libcuda.

Processes, pipes and signals are real. ``STAND_IN`` names a folder in which the daemon keeps notes: a line for each
start, and what it was asked; it takes the list of its clients from there. Other variables make it misbehave.
"""

import os
import subprocess
from pathlib import Path

DAEMON = """#!/bin/sh
if [ "$1" != -f ]; then
    read -r word
    echo "$word" >> "$STAND_IN/asked"
    case "$word" in
        get_server_list) echo 17 ;;
        "get_client_list 17") cat "$STAND_IN/clients" ;;
        quit) echo quit > "$CUDA_MPS_PIPE_DIRECTORY/control" ;;
    esac
    exit 0
fi
if [ -n "$STAND_IN_REFUSES" ]; then
    echo "An instance of this daemon is already running" >&2
    exit 1
fi
sleep 1000 &
echo "$$ $! $CUDA_VISIBLE_DEVICES $CUDA_MPS_PIPE_DIRECTORY" >> "$STAND_IN/started"
echo "[Control] the stand-in starts" > "$CUDA_MPS_LOG_DIRECTORY/control.log"
mkfifo "$CUDA_MPS_PIPE_DIRECTORY/control"
while true; do
    read -r word < "$CUDA_MPS_PIPE_DIRECTORY/control"
    if [ "$word" = quit ] && [ -z "$STAND_IN_IS_DEAF" ]; then
        kill -9 $!
        exit 0
    fi
done
"""

LIBRARY = """
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>

static int is_client_of_nobody(void) {
    const char *pipes = getenv("CUDA_MPS_PIPE_DIRECTORY");
    char path[512];
    if (!pipes) return 0;
    snprintf(path, sizeof path, "%s/control", pipes);
    return access(path, F_OK) != 0;
}
int cuInit(unsigned flags) {
    if (getenv("STAND_IN_HAS_NO_DEVICE")) return 100;
    return is_client_of_nobody() ? 805 : 0;
}
int cuDeviceGetCount(int *count) {
    const char *names = getenv("CUDA_VISIBLE_DEVICES");
    *count = names && *names;
    for (; names && *names; names++) *count += *names == ',';
    return 0;
}
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device + 1) * 3000 << 20; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 20 && getenv("STAND_IN_IS_EXCLUSIVE") ? 3 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return getenv("STAND_IN_SERVES_NOBODY") ? 807 : 0; }
int cuGetErrorString(int code, const char **text) {
    *text = code == 100 ? "no CUDA-capable device is detected"
          : code == 807 ? "MPS server is not ready to accept new MPS client requests"
          : "MPS client failed to connect to the MPS control daemon or the MPS server";
    return 0;
}
"""


def build(folder: Path) -> Path:
    """Put both stand-ins into a folder, which belongs on PATH and LD_LIBRARY_PATH."""
    (folder / "nvidia-cuda-mps-control").write_text(DAEMON)
    (folder / "nvidia-cuda-mps-control").chmod(0o755)
    (folder / "cuda.c").write_text(LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "cuda.c"], check=True)
    return folder


def starts(notes: Path) -> list[list[str]]:
    """Return of each start: the daemon's process, its server's, its GPUs, and its folder."""
    path = notes / "started"
    return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []


def lives(process: str) -> bool:
    """Say whether a process is there and has not ended."""
    try:
        os.kill(int(process), 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return False

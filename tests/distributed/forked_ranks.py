"""Runs `dla-train` in as many processes as it is told, each time anew, but imports everything once: it forks.

Reads lines of JSON, `{"folder": "...", "ranks": 2, "arguments": [...], "before": "..."}`, and answers each with
`{"codes": [...], "err": "..."}`: exit codes by rank, and what rank 0 said. `before` is code that each rank runs first.
"""

import json
import os
import signal
import socket
import sys
import time

import deepspeed  # noqa: F401
import torch

import dla_train.training.fit  # noqa: F401
from dla_kernels import segment
from dla_train.cli.main import main
from dla_train.distributed.placement import CHILD


def run(ranks, arguments, before):
    """Exit codes by rank, and what rank 0 said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(f"said-by-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            if ranks > 1:
                os.environ[CHILD] = f"{rank} {ranks} {port}"
            code = 99
            try:
                exec(before, {"rank": rank})
                code = main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return _waited_for(pids)


def _waited_for(pids):
    """Exit codes; as launchers do, the others are ended soon after one has failed."""
    codes, deadline = {}, None
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    deadline = time.monotonic() + 20
            elif deadline is not None and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    with torch.no_grad():  # compiled once, for all
        segment(torch.randn(1, 8, 2, 8), torch.randn(1, 8, 2, 8), capacity=4, threshold=0.9)
    for line in sys.stdin:
        wanted = json.loads(line)
        os.chdir(wanted["folder"])
        codes = run(wanted["ranks"], wanted["arguments"], wanted["before"])
        with open("said-by-0") as said:
            print(json.dumps({"codes": codes, "err": said.read()}), flush=True)

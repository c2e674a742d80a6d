"""Functions of a notebook, run by several processes that torchrun starts on this machine."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_BEGIN = "from __future__ import annotations\n\n\n"  # types need no imports
_CALL = """

if __name__ == "__main__":
    import json, os, pathlib, sys
    answer = json.dumps({name}(**json.loads(sys.argv[2])))  # first, or an error leaves half a file
    pathlib.Path(sys.argv[1], os.environ["RANK"] + ".json").write_text(answer)
"""


def torchrun(
    worker: Callable[..., Any],
    processes: int,
    *,
    uses: Sequence[Callable[..., Any]] = (),
    may_fail: bool = False,
    **arguments: Any,
) -> list[Any]:
    """Let each of several processes call a function; what it returns in each, None where it died.

    The processes are new ones, of this machine, and talk through its loopback device: no network.

    Args:
        worker: takes the arguments, and returns what JSON can hold. Its source is what runs, so it
            brings its own imports.
        processes: how many.
        uses: other functions that it calls, whose source goes along.
        may_fail: leave it to the caller to find out that processes died.

    Raises:
        RuntimeError: if a process died, with the end of what all of them wrote.
    """
    name = worker.__name__
    source = "\n\n".join(inspect.getsource(function) for function in (*uses, worker))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "0"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with TemporaryDirectory() as folder:
        script = Path(folder, f"{name}.py")
        script.write_text(_BEGIN + source + _CALL.replace("{name}", name), encoding="utf-8")
        words = ["--standalone", f"--nproc-per-node={processes}"]
        print("$ torchrun", *words, script.name, flush=True)
        here = ["--local-addr=127.0.0.1", "--monitor-interval=0.2"]
        command = [sys.executable, "-m", "torch.distributed.run", *words, *here, str(script)]
        started = subprocess.Popen(
            [*command, folder, json.dumps(arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            said, _ = started.communicate(timeout=900)  # only what hangs is stopped by the clock
        except BaseException:  # also Ctrl-C
            started.terminate()  # torchrun ends the others
            raise
        if started.returncode and not may_fail:
            raise RuntimeError(f"a process of {name} died:\n{said[-4000:]}")
        answers = [Path(folder, f"{rank}.json") for rank in range(processes)]
        return [json.loads(file.read_text()) if file.exists() else None for file in answers]

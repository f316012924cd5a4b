"""``python -P -m svdq_trt.build.fork_server SOCKET``: imports what stages need, once, and forks each stage's process.

torch, diffusers and the exporter take 3 to 8 s of a processor to import, in a build of three exports half of its time.
A fork has what this process has. It does nothing but import, so that it holds no thread and no GPU, which a fork could
not use; where a library starts one as it is imported, the stage runs in a new process.

A request is one byte on the socket with FILES open files: the stage as JSON, the stream of its events, its log, and a
pipe for the answer: a line with the process's id, and one with how it ended, as in subprocess (-9: by signal 9). When
the other end of the socket closes, all stages end.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

from svdq_trt.base.child import command
from svdq_trt.base.errors import EXIT_USER
from svdq_trt.base.garbage import no_collections
from svdq_trt.build import worker
from svdq_trt.build.stage import from_json

FILES = 4
#: devices that CUDA keeps open: on a PC, in WSL, on a Jetson
_IN_USE = ("/dev/nvidia-uvm", "/dev/dxg", "/dev/nvmap")


def main() -> int:
    """Serve requests until the socket closes; returns only in the process of a stage, with its exit code."""
    own = os.getpid()
    answers: dict[int, int] = {}  # running process -> file that is told how it ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the other end, which then closes
    signal.signal(signal.SIGCHLD, lambda *_: _tell_ended(answers))
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        request, files, *_ = socket.recv_fds(requests, 1, FILES)
        if not request:
            os._exit(0)  # and with it all stages
        stage, events, log, answer = files
        _import(stage, log)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # no end is told before its beginning
        pid = os.fork()
        if not pid:
            requests.close()
            for other in (answer, *answers.values()):
                os.close(other)
            return _run(stage, events, log, own)
        os.write(answer, b"%d\n" % pid)
        answers[pid] = answer
        for file in (stage, events, log):
            os.close(file)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _tell_ended(answers: dict[int, int]) -> None:
    for pid in list(answers):  # not any child: libraries start some while they are imported
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # told by the handler of another end, which came during this one
            continue
        if ended:
            answer = answers.pop(pid)
            os.write(answer, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(answer)


def _import(stage: int, log: int) -> None:
    """Import what the stage says; what libraries print goes into its log."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    text = os.pread(stage, os.fstat(stage).st_size, 0).decode()
    with no_collections():
        try:
            from_json(text).imports()
        except Exception:  # the stage imports it again, and reports what is wrong
            traceback.print_exc()
    gc.freeze()  # what is there stays: no stage's collector need look at it


def _run(stage: int, events: int, log: int, parent: int) -> int:
    """Run the stage, in the process that was forked for it."""
    worker.end_with_parent()
    if os.getppid() != parent:  # it ended before
        return EXIT_USER
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    for file, standard in zip((stage, events, log), range(3), strict=True):
        os.dup2(file, standard)
        os.close(file)
    if not _usable(parent):
        line = command("svdq_trt.build.worker")
        os.execv(line[0], line)
    return worker.main()


def _usable(parent: int) -> bool:
    """Whether `parent` held nothing that this fork of it lacks: a thread, or a GPU's driver that is in use."""
    threads = len(list(Path(f"/proc/{parent}/task").iterdir()))  # OpenBLAS ends its own before a fork
    files = (os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink())
    return threads == 1 == threading.active_count() and not any(file.startswith(_IN_USE) for file in files)


if __name__ == "__main__":
    sys.exit(main())

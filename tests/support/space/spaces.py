"""A stand-in for the package `spaces` on ZeroGPU: the decorated generator runs in a forked worker for a given time.

As there: arguments and what is yielded are pickled, a worker has as long as was asked for, closing the generator ends
it, and the server's own process must never have touched CUDA.
"""

import inspect
import multiprocessing
import os
import sys
import time

FORK = multiprocessing.get_context("fork")
MOST_S = 120


def GPU(task=None, *, duration=60, size=None):
    """See the package's own."""
    if task is None:
        return lambda task: GPU(task, duration=duration, size=size)
    assert inspect.isgeneratorfunction(task)

    def lent(*arguments):
        torch = sys.modules.get("torch")
        assert torch is None or not torch.cuda.is_initialized(), "CUDA was initialized in the server's process"
        seconds = duration(*arguments) if callable(duration) else duration
        assert 0 < seconds <= MOST_S, f"a GPU is not lent for {seconds} s"
        ours, theirs = FORK.Pipe()
        worker = FORK.Process(target=_work, args=(task, arguments, theirs), daemon=True)
        worker.start()
        theirs.close()
        began = time.monotonic()
        print(f"worker {worker.pid} of {os.getpid()} for {seconds} s", file=sys.stderr, flush=True)
        try:
            while True:
                if not ours.poll(max(0, began + seconds - time.monotonic())):
                    raise RuntimeError("GPU task aborted")
                is_over, value = ours.recv()
                if is_over:
                    break
                yield value
        finally:
            worker.terminate()
            worker.join()
            print(f"worker {worker.pid} ended after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    return lent


def _work(task, arguments, pipe) -> None:
    for value in task(*arguments):
        pipe.send((False, value))
    pipe.send((True, None))

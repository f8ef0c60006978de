"""Become another program that does not outlive its parent: python -m jaxlm.launch.child PARENT COMMAND..."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Ask the kernel for SIGKILL when the parent is gone, then run the command in this process.

    The wish outlasts exec. Only Linux has it: elsewhere the command outlives a parent that was killed outright.
    """
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != int(parent):  # it died before it was watched
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

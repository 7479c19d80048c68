"""`pass_fds.py FD:NAME… -- COMMAND…`: becomes COMMAND, with descriptors passed as systemd passes sockets.

Only who is the process itself can write LISTEN_PID, so systemd does the same between its fork and its exec.
"""

import fcntl
import os
import sys


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    pairs = [argument.split(":") for argument in arguments[:split]]
    # Out of the way first: one may stand where another must go.
    high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 64) for fd, _ in pairs]
    for number, fd in enumerate(high):
        os.dup2(fd, 3 + number)
    os.environ["LISTEN_FDS"] = str(len(pairs))
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDNAMES"] = ":".join(name for _, name in pairs)
    command = arguments[split + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

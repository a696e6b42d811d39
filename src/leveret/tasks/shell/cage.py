"""The inside of the sandbox: a program of its own (`python -I -S cage.py`), out of the standard library alone.

    stdin: seconds, places, jobs --> new namespaces --> a small read-only root --> each job in a fresh folder --> stdout

What holds a command, one thing after the other:

    nobody's rights       started by root, the program becomes `nobody` before all else; commands have no capability
    user namespace        and may make no other
    mount namespace       a root of /usr, /bin, /lib* and little of /etc, all read-only, but for one folder in memory
    network namespace     empty: not even a loopback that is up
    process namespace     this program is its process 1: nothing outside can be seen or signalled, and when a job is
                          over, all that it started is killed
    limits                time, processor time, memory, processes, size of files and of the folder, size of the output

Linux 5.14 or newer. Exit code 3 and a line on stderr: this machine does not allow it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOBODY, INSIDE = 65534, 1000
NEW_NAMESPACES = 0x10000000 | 0x20000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
"""User, mount, network, process, IPC, host name."""
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
DETACH, HERE, RECURSIVE = 2, -100, 0x8000
PDEATHSIG, DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS = 1, 4, 24, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
MOUNT_SETATTR = 442

SHOWN = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
SETTINGS = ("alternatives", "ld.so.cache")
"""Of /etc."""
DEVICES = ("null", "zero", "full", "random", "urandom")
THROWAWAY = "/throwaway"
"""A file system in memory, new for each job: the folder that it works in, and some places of the root."""
WORK = f"{THROWAWAY}/work"

MEGABYTE = 2**20
FOLDER_BYTES, FOLDER_FILES = 16 * MEGABYTE, 512
OUTPUT_BYTES = 256 * 1024
LIMITS = {
    resource.RLIMIT_AS: 512 * MEGABYTE,
    resource.RLIMIT_FSIZE: 4 * MEGABYTE,
    resource.RLIMIT_NPROC: 32,
    resource.RLIMIT_NOFILE: 64,
    resource.RLIMIT_CORE: 0,
}
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": WORK,
    "USER": "user",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "TERM": "dumb",
}
WRITTEN_AT = 1_700_000_000
"""Seconds since 1970 that a job's files were last changed."""

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = (None if text is None else text.encode() for text in (source, target, kind))
    check(libc.mount(*arguments, ctypes.c_ulong(flags), options and options.encode()), f"mount {target}")


# --- going in ------------------------------------------------------------------------------------------------


def enter() -> None:
    """Into namespaces of its own, as their process 1; the process outside waits for it and ends as it does."""
    Path("/proc/self/oom_score_adj").write_text("1000", "ascii")  # where memory is short, this goes first
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        check(libc.prctl(DUMPABLE, 1, 0, 0, 0), "prctl")  # else /proc/self is root's
    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(NEW_NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{INSIDE} {user} 1"), ("gid_map", f"{INSIDE} {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, "ascii")
    if first := os.fork():
        check(libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    check(libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # which process 1 does not heed from within


def build_root(places: list[str]) -> None:
    """A root of its own in memory, with what commands need of the machine's, read-only."""
    root = "/tmp"
    mount("none", "/", None, REC | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID, "size=1m,mode=755")
    os.chdir(root)
    for name in ("etc", "dev", "proc", THROWAWAY[1:]):
        Path(name).mkdir()
    for name in places:
        Path(name).symlink_to(f"{THROWAWAY}/{name}")
    for name in SHOWN:
        if (shown := Path("/", name)).is_symlink():
            Path(name).symlink_to(shown.readlink())
        else:
            show(shown)
    for name in SETTINGS:
        show(Path("/etc", name))
    for name in DEVICES:
        show(Path("/dev", name))
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path("dev", name).symlink_to(f"/proc/self/{target}")
    Path("etc/passwd").write_text(f"user:x:{INSIDE}:{INSIDE}::{WORK}:/bin/bash\n", "ascii")
    Path("etc/group").write_text(f"user:x:{INSIDE}:\n", "ascii")
    mount("proc", "proc", "proc", NOSUID | NODEV | NOEXEC)
    Path("proc/sys/user/max_user_namespaces").write_text("0", "ascii")
    number = PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"not tried on {platform.machine()}")
    check(libc.syscall(number, b".", b"."), "pivot_root")
    check(libc.umount2(b".", DETACH), "umount the old root")
    os.chdir("/")
    attributes = (ctypes.c_uint64 * 4)(RDONLY | NOSUID, 0, 0, 0)
    check(libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, attributes, ctypes.sizeof(attributes)), "read-only root")
    check(libc.prctl(DUMPABLE, 0, 0, 0, 0), "prctl")  # commands see nothing of this process in /proc
    socket.sethostname("sandbox")


def show(source: Path) -> None:
    """Binds a file or folder of the machine's at the same place of the new root, if there is one."""
    target = source.relative_to("/")
    if source.is_dir():
        target.mkdir()
    elif source.exists():
        target.touch()
    else:
        return
    mount(str(source), str(target), None, BIND | REC)


# --- one job -------------------------------------------------------------------------------------------------


def do(command: str, files: dict[str, str | None], places: list[str], seconds: float) -> dict[str, Any]:
    """Runs a command with these files there (None: a folder), relative ones in its folder.

    Returns:
        status: its exit code, negative after a signal; None where it went over the time or the output, or could not be
        tried. output: what it wrote to stdout. tree: what is there then; None where that cannot be read.
    """
    options = f"size={FOLDER_BYTES},nr_inodes={FOLDER_FILES},mode=755,uid={INSIDE},gid={INSIDE}"
    mount("tmpfs", THROWAWAY, "tmpfs", NOSUID | NODEV, options)
    status, output, tree = None, b"", None
    try:
        made = lay_out(files, places)
        begun = int(time.time())
        status, output = attempt(command, seconds)
        tree = {path: facts for folder in made for path, facts in described(folder, begun)}
    except (OSError, ValueError, RecursionError):  # a name that is too long, a folder that is too deep
        pass
    finally:
        check(libc.umount2(THROWAWAY.encode(), DETACH), "umount")
    return {"status": status, "output": output.decode("utf-8", "backslashreplace"), "tree": tree}


def lay_out(files: dict[str, str | None], places: list[str]) -> list[Path]:
    """Makes the folders that a job has of its own, which are returned, and its files."""
    folders = [Path(WORK), *(Path(THROWAWAY, place) for place in places)]
    made = set(folders)
    for folder in folders:
        folder.mkdir()
    for name, content in files.items():
        path = Path(THROWAWAY, name[1:]) if name.startswith("/") else Path(WORK, name)
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_text(content, "utf-8")
            path.chmod(0o640)  # so that the usual modes are a change
        made |= {each for each in (path, *path.parents) if each.is_relative_to(THROWAWAY)}
    for path in made:
        os.utime(path, (WRITTEN_AT, WRITTEN_AT))
    return folders


def attempt(command: str, seconds: float) -> tuple[int | None, bytes]:
    """The exit code, None where it went over the time or the output, and the output."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            become(command, writing, seconds)
        finally:
            os._exit(126)
    os.close(writing)
    os.set_blocking(reading, False)
    ended = os.pidfd_open(child)
    try:
        output, within = listen(reading, ended, time.monotonic() + seconds)
    finally:
        status = kill_all(child)
        os.close(reading)
        os.close(ended)
    return (os.waitstatus_to_exitcode(status) if within else None), output[:OUTPUT_BYTES]


def become(command: str, writing: int, seconds: float) -> None:
    """In the child: gives everything up and becomes the command."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for target, source in ((0, nothing), (1, writing), (2, nothing)):
        os.dup2(source, target)
    os.setsid()
    os.chdir(WORK)
    os.umask(0o022)
    for limit, value in (LIMITS | {resource.RLIMIT_CPU: int(seconds) + 1}).items():
        resource.setrlimit(limit, (value, value))
    for capability in range(64):
        libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    check(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-c", command], ENVIRONMENT)


def listen(reading: int, ended: int, deadline: float) -> tuple[bytes, bool]:
    """The output until the command has ended; whether it did in time and without too much output."""
    output = b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([reading, ended], [], [], left)
        if reading in ready:
            part = os.read(reading, OUTPUT_BYTES)
            output += part
            if len(output) > OUTPUT_BYTES:
                return output, False
            if part:
                continue
            select.select([ended], [], [], max(0.0, deadline - time.monotonic()))  # nobody can write any more
            return output, time.monotonic() < deadline
        if ended in ready:
            return output, True
    return output, False


def kill_all(child: int) -> int:
    """Ends every process but this one. The wait status of that child."""
    status = 0
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return status
        try:
            pid, found = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        status = found if pid == child else status


def described(folder: Path, begun: int) -> Iterator[tuple[str, list[Any]]]:
    """(path, [kind, mode, what it holds, time]) of everything in the folder. What was changed by the command has no
    time, unless the command itself has set one."""
    budget = 4 * FOLDER_BYTES
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path, facts = Path(entry.path), entry.stat(follow_symlinks=False)
        name = str(path.relative_to(WORK)) if path.is_relative_to(WORK) else f"/{path.relative_to(THROWAWAY)}"
        when = None if begun - 1 <= facts.st_mtime <= time.time() + 1 else int(facts.st_mtime)
        mode = stat.S_IMODE(facts.st_mode)
        if stat.S_ISLNK(facts.st_mode):
            yield name, ["link", 0, str(path.readlink()), None]
        elif stat.S_ISDIR(facts.st_mode):
            yield name, ["folder", mode, "", None]
            yield from described(path, begun)
        elif stat.S_ISREG(facts.st_mode):
            budget -= facts.st_size
            if budget < 0:
                raise OSError("too much to read")
            yield name, ["file", mode, hashlib.sha256(path.read_bytes()).hexdigest(), when]
        else:
            yield name, ["other", mode, "", None]


def main() -> int:
    asked = json.load(sys.stdin)
    try:
        enter()
        build_root(asked["places"])
    except OSError as error:
        print(error, file=sys.stderr)
        return 3
    for job in asked["jobs"]:
        result = do(job["command"], job["files"], asked["places"], asked["seconds"])
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

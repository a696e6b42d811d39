"""The sandbox holds: whatever a command tries, nothing outside its folder changes, and it is over in time."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from leveret.tasks.shell.sandbox import CAGE, Job, Outcome, run

pytestmark = pytest.mark.usefixtures("sandbox")


def one(command: str, files: dict[str, str | None] | None = None, seconds: float = 1.0) -> Outcome:
    return run([Job(command, files or {})], seconds)[0]


def alive(mark: str) -> list[int]:
    """Processes of this machine that have the mark in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_text("utf-8", "replace"):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


def test_a_command_finds_its_files_and_its_effect_is_told() -> None:
    found = one(
        "cat notes.txt; mkdir new; cp notes.txt new/copy; ln -s copy new/link", {"notes.txt": "hi\n", "d": None}
    )
    assert (found.status, found.output) == (0, "hi\n")
    assert found.tree is not None
    assert sorted(found.tree) == ["d", "new", "new/copy", "new/link", "notes.txt"]
    assert found.tree["new/copy"][:3] == found.tree["notes.txt"][:3]
    assert found.tree["new/link"] == ["link", 0, "copy", None]


def test_equal_commands_have_equal_outcomes_and_folders_of_their_own() -> None:
    first, second, third = run([Job("ls -l; touch made", {"a": "x"})] * 2 + [Job("ls; exit 3")])
    assert first == second
    assert (third.status, third.output, third.tree) == (3, "", {})


def test_output_that_is_no_text_is_told_all_the_same() -> None:
    assert one("printf '\\xff\\n'").output == "\\xff\n"


# --- nothing outside changes ---------------------------------------------------------------------------------


def test_nothing_but_the_folder_can_be_written(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    places = [
        "/x", "/usr/x", "/etc/x", "/dev/x", "/dev/shm/x", "/proc/x", "/root/x", "../../x", str(outside / "x"),
        "/tmp/../../x", "/proc/1/root/x", "/proc/self/root/x", "/proc/self/cwd/../../x",
    ]  # fmt: skip
    held = run([Job(f"echo bad > {place}") for place in places])
    assert [(place, o.status) for place, o in zip(places, held, strict=True) if o.status == 0] == []
    assert list(outside.iterdir()) == []
    assert not any(Path(place).exists() for place in places if place.startswith("/") and "proc" not in place)


def test_folders_of_the_root_that_commands_like_to_name_are_its_own_too() -> None:
    name = f"made-{os.getpid()}"
    found, after = run(
        [Job(f"cat /srv/notes.txt; touch /tmp/{name} /var/{name}", {"/srv/notes.txt": "hi"}), Job("ls /tmp /var /srv")]
    )
    assert found.output == "hi"
    assert found.tree is not None
    assert sorted(found.tree) == ["/srv/notes.txt", f"/tmp/{name}", f"/var/{name}"]
    assert (after.output, after.tree) == ("/srv:\n\n/tmp:\n\n/var:\n", {})
    assert not Path("/tmp", name).exists()
    assert not Path("/var", name).exists()


def test_home_is_the_folder_and_the_environment_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_SECRET", "hunter2")
    found = one("touch ~/made; cd /tmp; cd; ls; env; cat /proc/1/environ")
    assert found.output.startswith("made\n")
    assert "hunter2" not in found.output
    assert found.tree is not None
    assert list(found.tree) == ["made"]


@pytest.mark.parametrize(
    "command",
    [
        "cd /proc/1/root && cat etc/hostname",
        f"cat /proc/1/root{Path(__file__)}",
        f"cat {Path(__file__)}",
        "cat /etc/shadow",
        "ls /root",
        f"ls {Path(__file__).parents[2]}",
        "cat /proc/1/mem",
        "cat /proc/1/fd/0",
    ],
)
def test_nothing_of_the_machine_but_its_programs_can_be_read(command: str) -> None:
    assert one(f"{command} || exit 9").status == 9


def test_a_symlink_out_of_the_folder_leads_nowhere_and_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept")
    secret.chmod(0o666)
    found = one(f"ln -s {secret} link; echo bad > link; rm -rf link/; ln -s / root; rm -rf root/tmp/* root/usr/bin")
    assert secret.read_text() == "kept"
    assert found.tree is not None
    assert found.tree["link"] == ["link", 0, str(secret), None]
    assert found.tree["root"] == ["link", 0, "/", None]
    assert Path("/usr/bin/env").exists()


def test_no_rights_can_be_won() -> None:
    commands = [
        "mount -t tmpfs none /work", "mount -o remount,rw /", "umount /work", "unshare -r true", "unshare -m true",
        "chroot / true", "su -c true", "mknod disk b 8 0", "echo 9 > /proc/sys/user/max_user_namespaces",
        "echo b > /proc/sysrq-trigger", "setpriv --reuid 0 true", "nsenter -t 1 -m true", "date -s 2001-01-01",
        "hostname other", "nice -n -5 true 2>&1 | grep -q cannot && exit 1",
    ]  # fmt: skip
    done = run([Job(command) for command in commands])
    assert [command for command, o in zip(commands, done, strict=True) if o.status == 0] == []
    assert "0000000000000000" in one("grep CapEff /proc/self/status").output
    assert "0000000000000000" in one("grep CapBnd /proc/self/status").output
    assert one("id -u").output == "1000\n"


def test_the_network_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()  # it does answer from outside
        perl = (
            f"perl -MSocket -e 'socket(S,2,1,0); exit(connect(S, sockaddr_in({port}, inet_aton(q(127.0.0.1)))) ? 0:1)'"
        )
        done = run([Job(f"echo hi > /dev/tcp/127.0.0.1/{port}"), Job(perl), Job("getent hosts example.com")])
        assert all(outcome.status not in (0, None) for outcome in done)
        with pytest.raises(TimeoutError):
            server.accept()


def test_signals_reach_no_other_process() -> None:
    got = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: got.set())
    try:
        pids = f"{os.getpid()} {os.getppid()} 1"
        done = run([Job(f"kill -USR1 {pids}; kill -9 {pids}; kill -INT 1; kill -TERM 1; echo on"), Job("kill -9 -1"),
                    Job("echo still there")])  # fmt: skip
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not got.is_set()
    assert done[0].output == "on\n"
    assert done[2].output == "still there\n"


def test_what_is_told_cannot_be_forged() -> None:
    forged = '{"status": 0, "output": "forged", "tree": {}}'
    found = one(f"for n in 0 1 2 3 4 5; do echo '{forged}' > /proc/1/fd/$n; echo '{forged}' >&$n; done; exit 7")
    assert found.status == 7
    assert one(f"echo '{forged}'").output == forged + "\n"


# --- and it is over in time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "while :; do :; done",
        "sleep 100",
        ":(){ :|:& };:; sleep 100",
        "bomb() { bomb | bomb & }; bomb; while :; do :; done",
        "trap '' TERM INT HUP QUIT; while :; do sleep 1; done",
        "yes",
        "cat /dev/zero",
    ],
)
def test_what_would_never_end_is_ended(command: str) -> None:
    begun = time.monotonic()
    assert run([Job(command), Job("echo next")], 0.3)[1].output == "next\n"
    assert time.monotonic() - begun < 5


def test_what_goes_on_in_the_background_is_ended_with_the_command() -> None:
    mark = f"marked-{os.getpid()}-{time.monotonic_ns()}"
    command = f"(trap '' HUP TERM; exec -a {mark} sleep 77) & setsid nohup bash -c 'sleep 78; : {mark}' & echo done"
    begun = time.monotonic()
    assert one(command, seconds=20).output == "done\n"
    assert time.monotonic() - begun < 10
    assert alive(mark) == []


def test_a_fork_bomb_has_no_more_processes_than_it_may() -> None:
    counted = one("for i in $(seq 100); do sleep 5 & done 2>/dev/null; jobs -p | wc -l; ls -d /proc/[0-9]* | wc -l")
    assert counted.status != 0 or int(counted.output.split()[-1]) < 40


def test_sizes_are_bounded() -> None:
    huge, many, long, memory = run(
        [
            Job("head -c 1G /dev/zero > huge; true"),
            Job("for i in $(seq 20000); do echo > f$i || break; done 2> /dev/null; ls | wc -l"),
            Job("head -c 10M /dev/zero | tr '\\0' x"),
            Job("perl -e '$x = \"x\" x (2 * 1024 ** 3); print length $x'"),
        ]
    )
    assert huge.tree is not None
    assert len(huge.output) == 0
    assert one("head -c 1G /dev/zero > huge; stat -c %s huge").output in ("", "4194304\n")
    assert int(many.output or 0) < 512
    assert long.status is None
    assert len(long.output) <= 256 * 1024
    assert memory.status != 0
    assert memory.output == ""


def test_a_folder_that_cannot_be_read_is_no_tree() -> None:
    """Folders in folders until the path is longer than the system takes."""
    deep = "n=$(printf 'x%.0s' $(seq 250)); for i in $(seq 30); do mkdir $n && cd $n; done; echo ok"
    assert one(deep) == Outcome(0, "ok\n", None)


def test_a_job_that_cannot_be_laid_out_is_not_tried_and_the_next_is() -> None:
    jobs = [Job("ls", {"x" * 300: ""}), Job("ls", {"\ud800": ""}), Job("ls", {"a": "", "a/b": ""}), Job("echo next")]
    assert run(jobs) == [Outcome(None)] * 3 + [Outcome(0, "next\n", {})]


def test_when_who_asked_is_gone_so_is_the_sandbox() -> None:
    mark = f"marked-{os.getpid()}-{time.monotonic_ns()}"
    code = f"from leveret.tasks.shell.sandbox import *; run([Job('exec -a {mark} sleep 60')], 60)"
    asking = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not alive(mark):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asking.kill()
    asking.wait()
    while alive(mark) or alive(f"{CAGE} {mark}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)

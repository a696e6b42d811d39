"""Marks commands that destroy or overwrite something. A help for the eye, not a guard: it knows common forms only."""

from __future__ import annotations

import re

PATTERNS: list[tuple[str, str]] = [
    (r"(?<![-.\w])rm\b(?!\s+--cached\b)|\b(un)?zstd\b.*\s--rm\b", "deletes files"),
    (r"\brmdir\b", "deletes folders"),
    (r"\bshred\b", "overwrites files beyond recovery"),
    (r"\bunlink\b", "deletes a file"),
    (r"\bfind\b.*\s-delete\b", "deletes what it finds"),
    (r"\bdd\b.*\bof=", "overwrites its output"),
    (r"\bmkfs(\.\w+)?\b|\bwipefs\b|\bmkswap\b", "erases a file system"),
    (r"\b(fdisk|parted|sgdisk)\b(?!.*\s-l\b)", "changes partitions"),
    (r"\bch(mod|own|grp)\b.*\s(-\w*R\w*|--recursive)\b", "changes rights of a whole tree"),
    (r"(?<![-=<>&\d])[&\d]?>(?![>&=])\s*(?!/dev/null)[^\s|;]", "overwrites a file"),
    (r"\btee\b(?!.*\s(-\w*a\w*|--append)\b)\s+(?!/dev/null)[^\s|;]", "overwrites a file"),
    (r"\btruncate\b", "cuts a file"),
    (r"\bmv\b(?!.*\s-\w*[in]\w*\b)", "may overwrite its target"),
    (r"\b(sed|perl)\b[^|;]*\s(-\w*i\b|--in-place\b)", "edits files in place"),
    (r"\brsync\b.*--delete", "deletes files at the target"),
    (r"\bkubectl\b.*\sdelete\b", "deletes from a cluster"),
    (r"\bhelm\s+(uninstall|delete)\b", "removes a release from a cluster"),
    (r"\bdocker\b.*\s(rm|rmi|prune|kill)\b", "removes containers, images or volumes"),
    (r"\bdocker[ -]compose\b.*\bdown\b.*\s(-v|--volumes)\b", "removes volumes"),
    (r"\bgit\s+reset\b.*--hard", "throws away changes"),
    (r"\bgit\s+clean\b.*\s-\w*f", "deletes untracked files"),
    (r"\bgit\s+checkout\b.*\s(--\s|\.)", "throws away changes"),
    (r"\bgit\s+restore\b(?!.*\s(--staged|-S)\b)", "throws away changes"),
    (r"\bgit\s+push\b.*(--force\b|\s-f\b|--delete\b|\s:\S)", "rewrites or deletes remote history"),
    (r"\bgit\s+branch\b.*\s-D\b", "deletes a branch"),
    (r"\bgit\s+stash\s+(drop|clear)\b", "throws away stashed changes"),
    (r"(?<!-)\b(kill|pkill|killall)\b", "ends processes"),
    (r"\b(shutdown|reboot|poweroff|halt)\b", "stops the machine"),
    (r"\bsystemctl\b.*\b(stop|disable|mask|restart)\b", "stops or restarts a service"),
    (
        r"\b(apt|apt-get|dnf|yum|snap|brew|conda|npm|pip3?)\b.*\b(remove|purge|autoremove|uninstall)\b",
        "removes packages",
    ),
    (r"\b(userdel|groupdel|deluser)\b", "deletes an account"),
    (r"\bcrontab\b.*\s-r\b", "deletes all scheduled jobs"),
    (r"\biptables\b.*\s-F\b", "drops all firewall rules"),
    (r"\b(curl|wget)\b.*\|\s*(sudo\s+)?(ba|z)?sh\b", "runs a script from the network"),
    (r":\(\)\s*\{", "is a fork bomb"),
    (r"(?i)\b(Remove-Item|Clear-Content|Clear-Item|Remove-\w+|ri|del|erase|rd)\b", "deletes"),
    (r"(?i)\b(Format-Volume|Clear-Disk|Initialize-Disk)\b", "erases a disk"),
    (r"(?i)\b(Stop-Process|Stop-Service|Stop-Computer|Restart-Computer|Restart-Service)\b", "stops something"),
]


def dangers(command: str) -> list[str]:
    """What is destructive about a command, in a few words each; empty if nothing known is."""
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "''", command)
    return list(dict.fromkeys(reason for pattern, reason in PATTERNS if re.search(pattern, unquoted)))

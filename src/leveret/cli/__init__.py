"""The command line: verbs parse, call one function, and print.

Exit codes: 0 done; 1 an audit found something; 2 a mistake of the user's, said in one line; 128 + n stopped by
signal n, everything saved; 75 another process of this training was lost, and the same command goes on.
"""

from __future__ import annotations

import errno
import os
import sys

DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    errno.EIO,
}  # fmt: skip
"""What a disk may say that is no mistake of ours."""
RANK = os.environ.get("RANK", "0")
"""Which of the processes this is that torchrun has started."""


def main() -> None:
    """Runs the command line and turns mistakes into one line; --debug anywhere shows tracebacks instead."""
    from leveret.cli.app import app
    from leveret.errors import UserError

    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except UserError as error:
        if debug:
            raise
        _say(f"leveret: {' '.join(str(error).split())}")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if debug or error.errno not in DISK:
            raise
        place = error.filename or "the disk"
        _say(
            f"leveret: {place} cannot be written ({error.strerror}); make room or choose another place, and the same "
            "command goes on"
        )
        sys.exit(2)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None or debug:
            raise
        if code < 128 or RANK == "0":  # being asked to stop, all ranks say the same
            _say(f"leveret: {error}")
        sys.exit(code)


def _say(text: str) -> None:
    print(text if RANK == "0" else text.replace("leveret:", f"leveret, rank {RANK}:", 1), file=sys.stderr)

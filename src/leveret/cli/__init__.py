"""The command line: verbs parse, call one function, and print.

Exit codes: 0 done; 1 an audit found something; 2 a mistake of the user's, said in one line; 128 + n stopped by
signal n, everything saved.
"""

from __future__ import annotations

import sys


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
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None or debug:
            raise
        _say(f"leveret: {error}")
        sys.exit(code)


def _say(text: str) -> None:
    print(text, file=sys.stderr)

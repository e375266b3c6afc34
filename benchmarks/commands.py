"""Commands as the results of benchmarks and studies store them: without the paths of a machine."""

import pathlib
import re
import shlex
import sys

ROOT = pathlib.Path(__file__).parent.parent
NO_RESULT = "--workdir", "--minutes", "--json"  # flags that change no result


def portable(text: str) -> str:
    """Returns a text in which only the last part is left of each path that is absolute or leaves this folder.

    >>> portable("image_folder:/tmp/x/imagenette2-160")
    'image_folder:imagenette2-160'
    """
    return re.sub(r"(^|[=:,\s])(?:~[^/\s,]*|\.\.)?/(?:[^/\s,]*/)*([^/\s,]+)/?", r"\1\2", text)


def own_command() -> str:
    """Returns the command of this process, without a machine's paths and without flags that change no result."""
    words = [word for word in sys.argv[1:] if not word.startswith(NO_RESULT)]
    program = pathlib.Path(sys.argv[0]).absolute()
    program = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program.name
    return shlex.join(["python", str(program), *map(portable, words)])

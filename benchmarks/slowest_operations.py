"""Lists the slowest operations of a step: python benchmarks/slowest_operations.py PROFILE/*/layers.json.gz.

`benchmark.py --profile=PROFILE` writes these files, in one folder for each of its rows.
"""

import collections
import gzip
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from training import command_line

SHOWN = 40  # operations of each profile


def list_operations(path: pathlib.Path) -> list[str]:
    """Returns a line for each of the slowest operations: its share of the time, milliseconds, runs, name and origin."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    events = [event for event in events if "kind" in event.get("args", {})]
    milliseconds, runs, origins = collections.Counter(), collections.Counter(), {}
    for event in events:
        milliseconds[event["name"]] += event["dur"] / 1000
        runs[event["name"]] += 1
        origins[event["name"]] = event["args"]["origin"]
    total = milliseconds.total()
    return [
        f"{time / total:6.1%} {time:9.3f} ms {runs[name]:4} x  {name}  {origins[name]}"
        for name, time in milliseconds.most_common(SHOWN)
    ]


def main() -> None:
    """Prints the operations of each file."""
    for word in sys.argv[1:]:
        try:
            command_line.say(f"{word}\n" + "\n".join(list_operations(pathlib.Path(word))))
        except (OSError, EOFError, ValueError, KeyError) as error:
            command_line.refuse(f"{word} is no layers.json.gz: {error}")


if __name__ == "__main__":
    main()

"""A process that prepares tokens in children of its own, so that a killed one costs no imports.

Each line of the standard input holds the arguments of `gossamer prepare` in JSON, which a child runs with; printed are
the child's process id at once and its exit status at its end. Units are small, so that there are many.
"""

if __name__ == "__main__":  # a child's own processes, which only make tokens, import nothing of this
    import json
    import os
    import sys

    from gossamer.cli import main
    from gossamer.training import preparation, sources, tokenising

    assert preparation.prepare  # imported once, for all children
    sources.PIECE, tokenising.UNIT = 1000, 4000
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(main(["prepare", *json.loads(line)]))
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)

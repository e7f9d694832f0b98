"""What a long benchmark is at, for whoever waits for it."""

import logging
import sys


def show_progress() -> None:
    """Write a line to standard output as each contender begins and ends, with the time of day."""
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger(__package__).setLevel(logging.INFO)

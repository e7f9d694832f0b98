"""A random order of which any place is known at once: nothing of it is kept, however many things there are."""

import hashlib

WORD = 2**64 - 1
ROUNDS = 6


class Shuffle:
    """`count` things in an order drawn from `key`: each is at one place, and the place says which.

    A Feistel network permutes the numbers below the next power of four; those that fall outside `count` are sent
    through again until they fall inside (cycle walking). It is the same on every machine and in every version.

    >>> order = Shuffle(10, "any text")
    >>> [order[place] for place in range(10)]
    [6, 9, 8, 1, 2, 0, 5, 7, 4, 3]

    Papers: Luby and Rackoff, "How to Construct Pseudorandom Permutations from Pseudorandom Functions", 1988; Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3.
    """

    def __init__(self, count: int, key: str):
        drawn = hashlib.shake_256(key.encode()).digest(8 * (ROUNDS + 1))
        self.number, *self._keys = (int.from_bytes(drawn[n : n + 8], "little") for n in range(0, len(drawn), 8))
        """64 random bits of the key's, for what else is to be drawn."""
        self._count, self._half = count, max(1, (max(count - 1, 1).bit_length() + 1) // 2)

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self._count:
            raise IndexError(f"place is {place}; give one in [0, {self._count})")
        place = self._permuted(place)
        while place >= self._count:
            place = self._permuted(place)
        return place

    def _permuted(self, number: int) -> int:
        half, mask = self._half, (1 << self._half) - 1
        left, right = number >> half, number & mask
        for key in self._keys:
            left, right = right, left ^ _mixed(right ^ key) & mask
        return left << half | right


def _mixed(word: int) -> int:
    """A bijection of 64-bit words whose every output bit hangs on every input bit (Steele et al., "SplitMix", 2014)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31

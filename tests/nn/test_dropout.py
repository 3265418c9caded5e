"""Check the mask generator against Philox as in its paper, and against its distribution."""

from __future__ import annotations

import numpy as np

from xplstm._array import numpy_namespace
from xplstm.cells import masks

XP = numpy_namespace()
M = 2**64 - 1
LAYERS = masks.Purpose.BETWEEN_LAYERS


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Compute Philox 4x64-10 of Salmon et al. (2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product_0, product_1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (
            (product_1 >> 64) ^ c1 ^ k0,
            product_1 & M,
            (product_0 >> 64) ^ c3 ^ k1,
            product_0 & M,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & M, (k1 + 0xBB67AE8584CAA73B) & M
    return [c0, c1, c2, c3]


def test_every_element_can_be_made_by_itself() -> None:
    key, stream, p, shape = np.asarray([2**63 + 5, 77], dtype=np.uint64), 3, 0.3, (3, 5, 2)
    mask = masks.scaled_mask(XP, shape, p, key, stream, "float64", "cpu", LAYERS).reshape(-1)
    for n, value in enumerate(mask):
        word = philox([n // 4 + 1, 0, stream, 0], [int(k) for k in key])[n % 4]
        assert value == (1 / (1 - p) if (word >> 11) / 2**53 >= p else 0)


def test_the_share_that_is_dropped() -> None:
    key = masks.draw_key(0)
    for p in (0.1, 0.5, 0.9):
        mask = masks.scaled_mask(XP, (400, 500), p, key, 1, "float32", "cpu", LAYERS)
        assert abs((mask == 0).mean() - p) < 4 * (p * (1 - p) / mask.size) ** 0.5
        assert abs(mask.mean() - 1) < 0.02


def test_streams_and_keys_differ() -> None:
    key = masks.draw_key(0)
    one, two = (masks.scaled_mask(XP, (64,), 0.5, key, stream, "float32", "cpu", LAYERS) for stream in (1, 2))
    assert (one != two).any()
    generator = np.random.default_rng(0)
    assert masks.draw_key(generator) != masks.draw_key(generator)


def test_a_number_that_equals_the_probability_is_kept_and_not_held():
    """Numbers are in [0, p) with probability p, so p itself is outside."""
    key, shape = (3, 5), (8,)
    for n in range(8):
        p = float(masks.uniform(shape, key, LAYERS, 1)[n])
        kept = masks.scaled_mask(XP, shape, p, key, 1, "float64", None, LAYERS)
        held = masks.hold_mask(XP, shape, p, key, LAYERS, 1, 0, None)
        assert kept[n] == 1 / (1 - p)
        assert not held[n]
        np.testing.assert_array_equal(kept == 0, held)


def test_a_key_is_two_words_of_the_generator():
    raw = np.random.PCG64(7).random_raw(2).tolist()
    assert masks.draw_key(7) == tuple(raw)

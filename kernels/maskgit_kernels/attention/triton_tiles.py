"""What the forward and the backward kernels share: tiles of rows, products of them, and dropout.

A head_dim that is no power of two is cut into parts that are, widest first: 48 = 32 + 16, 112 = 64 + 32 + 16. A tile of
rows is then a tuple of blocks, one for each part, and a product over the head dim is a sum of products. `PARTS` holds
the (first, end) column of each part. Where padding is faster there is one part that ends beyond the head_dim, and its
columns in excess are loaded as zeros.

`matrix` below is a tuple of a pointer to an [N, D] matrix and the strides of its rows and columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels import philox
from maskgit_kernels.philox_triton import philox_4x32, seed_halves
from maskgit_kernels.tf32_triton import round_to_tf32

LOG2_E = tl.constexpr(1.4426950408889634)
TAIL = tl.constexpr(16)  # rows at a time of what fills no block: the fewest that tl.dot multiplies, or sums over
FEW_COLUMNS = tl.constexpr(32)  # at a time of what a program of TAIL rows goes through: more would take registers
_ROUNDS = tl.constexpr(philox.DROPOUT_ROUNDS)
_STREAM = tl.constexpr(philox.STREAM_DROPOUT)


# Rows that fill no block of a program's own. If they would fill no more than half of one, they go to programs of TAIL
# rows, which do that much less work: 257 tokens then cost little more than 256, and not a fifth more.

Parts = tuple[tuple[int, int], ...]


def few_left(length: int, block: int, parts: Parts) -> Parts | None:
    """PARTS for such programs; None if `length` rows, `block` at a time, leave none or too many for them.

    They have no part of 16 columns: four warps share out 16 by 32 numbers, but each do all of 16 by 16.
    """
    if block <= TAIL.value or not 0 < length % block <= block // 2:
        return None
    return tuple((start, max(end, start + 32)) for start, end in parts)


def programs(length: int, block: int) -> int:
    """How many programs take `length` rows."""
    whole, left = divmod(length, block)
    return whole + triton.cdiv(left, TAIL.value if few_left(length, block, ()) is not None else block)


@triton.jit
def own_rows(length, BLOCK: tl.constexpr, FEW_LEFT: tl.constexpr):
    """The rows of a program, where there are `programs` of them for each (image, head) pair.

    Returns:
        The index of the pair; the first row if it has BLOCK rows; the first row if it has TAIL; whether that is so.
    """
    program = tl.program_id(0)
    if FEW_LEFT is not None:
        whole = length // BLOCK
        count = whole + tl.cdiv(length % BLOCK, TAIL)
        block = program % count
        return program // count, block * BLOCK, whole * BLOCK + (block - whole) * TAIL, block >= whole
    else:
        count = tl.cdiv(length, BLOCK)
        return program // count, program % count * BLOCK, 0, False


@triton.jit
def zeros(ROWS: tl.constexpr, PARTS: tl.constexpr):
    blocks = ()
    for i in tl.static_range(len(PARTS)):  # Triton 3.6 has comprehensions over its own tuples only, not over constants
        blocks = blocks + (tl.zeros([ROWS, PARTS[i][1] - PARTS[i][0]], tl.float32),)  # [ROWS, D_i]
    return blocks


@triton.jit
def skip_rows(matrix, count):
    """The matrix without its first `count` rows."""
    pointer, row_stride, column_stride = matrix
    return pointer + tl.cast(count, tl.int64) * row_stride, row_stride, column_stride


@triton.jit
def load_rows(matrix, rows, count, PARTS: tl.constexpr, D: tl.constexpr, MASK: tl.constexpr):
    """Some rows as a tuple of blocks [ROWS, D_i]. With MASK, rows from `count` on are zeros."""
    pointer, row_stride, column_stride = matrix
    blocks = ()
    for i in tl.static_range(len(PARTS)):
        columns = tl.arange(PARTS[i][0], PARTS[i][1])  # [D_i]
        places = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride  # [ROWS, D_i]
        inside = columns[None, :] < D  # [1, D_i]
        if MASK:
            inside = inside & (rows[:, None] < count)  # [ROWS, D_i]
        if MASK or PARTS[i][1] > D:
            blocks = blocks + (tl.load(pointer + places, mask=inside, other=0.0),)
        else:
            blocks = blocks + (tl.load(pointer + places),)
    return blocks


@triton.jit
def store_rows(matrix, rows, count, blocks, PARTS: tl.constexpr, D: tl.constexpr):
    """Write blocks [ROWS, D_i] to some rows, as far as these are below `count`."""
    pointer, row_stride, column_stride = matrix
    for i in tl.static_range(len(PARTS)):
        columns = tl.arange(PARTS[i][0], PARTS[i][1])  # [D_i]
        places = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride  # [ROWS, D_i]
        inside = (rows[:, None] < count) & (columns[None, :] < D)  # [ROWS, D_i]
        tl.store(pointer + places, blocks[i].to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def factors(blocks, PRECISION: tl.constexpr):
    """Blocks as what is to be multiplied: rounded to tf32 if tensor cores will take them as that."""
    if PRECISION == "tf32":
        results = ()
        for i in tl.static_range(len(blocks)):
            results = results + (round_to_tf32(blocks[i]),)
        return results
    else:
        return blocks


@triton.jit
def product(left, right, PRECISION: tl.constexpr):
    """left right^T, summed over the parts: `factors` [M, D_i] and [N, D_i] to [M, N]."""
    total = tl.dot(left[0], tl.trans(right[0]), input_precision=PRECISION)
    for i in tl.static_range(1, len(left)):
        total = tl.dot(left[i], tl.trans(right[i]), total, input_precision=PRECISION)
    return total


@triton.jit
def add_products(sums, weights, blocks, PRECISION: tl.constexpr):
    """sums + weights blocks, part by part: [M, D_i] and [M, N] times `factors` [N, D_i]."""
    (weights,) = factors((weights.to(blocks[0].dtype),), PRECISION)
    results = ()
    for i in tl.static_range(len(blocks)):
        results = results + (tl.dot(weights, blocks[i], sums[i], input_precision=PRECISION),)
    return results


# Dropout. One call of the generator has sixteen bytes, which decide on as many neighbouring keys, for one query.
# Attention does not care for the order of the keys, so a tile's keys are put in such an order that decisions need not
# travel far: each thread of a warp holds a fixed set of places of a block that comes from matrix instructions.


@triton.jit
def noise_of(seed_ptr, pair, last_dropped):
    """What decides: the generator's key (two words), the index of the (image, head) pair, and the largest byte that
    drops a weight."""
    key0, key1 = seed_halves(tl.load(seed_ptr))
    return key0, key1, pair, last_dropped


@triton.jit
def keys_as_columns(BLOCK_N: tl.constexpr):
    """Offsets of the keys that the columns of a [queries, keys] block stand for.

    A thread holds columns 2c, 2c + 1, 2c + 8, 2c + 9, 2c + 16, ... of a row, c being its place among four. So of each
    32 columns, the eight of a thread stand for every other one of sixteen keys: the odd ones where c is even, or the
    even ones. Of 16 columns, the first eight stand for the odd keys.
    """
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if BLOCK_N >= 32:
        thread, place = columns // 2 % 4, columns // 8 % 4 * 2 + columns % 2
        return columns // 32 * 32 + thread // 2 * 16 + place * 2 + 1 - thread % 2
    else:
        return columns % 8 * 2 + 1 - columns // 8


@triton.jit
def _words(noise, sixteens, queries):
    """The four words that decide on sixteen keys each, of the shape that both numbers broadcast to, and the limit that
    the topmost byte of a word must make it exceed for the byte's key to be kept."""
    key0, key1, pair, last_dropped = noise
    words = philox_4x32(key0, key1, sixteens, queries, pair, _STREAM, _ROUNDS)
    # A byte is above `last_dropped` if the word that has it on top is above last_dropped followed by 24 ones: no byte
    # needs to be cut out.
    return words, (last_dropped.to(tl.uint32) << 24) | 0xFFFFFF


@triton.jit
def keep_by_columns(noise, queries, first_key, BLOCK_N: tl.constexpr):
    """What dropout keeps of a block whose columns are `keys_as_columns`: bool [BLOCK_M, BLOCK_N].

    Args:
        queries: [BLOCK_M], their indices.
        first_key: of the block, a multiple of 16.
    """
    BLOCK_M: tl.constexpr = queries.shape[0]
    octets = first_key // 8 + tl.arange(0, BLOCK_N // 8)  # [BLOCK_N / 8], of every other key
    words, limit = _words(noise, octets[None, :] // 2, queries[:, None])  # [BLOCK_M, BLOCK_N / 8] each
    even_keys = (octets % 2 * 8).to(tl.uint32)[None, :]
    w0, w1, w2, w3 = words
    w0, w1, w2, w3 = w0 << even_keys, w1 << even_keys, w2 << even_keys, w3 << even_keys
    w02 = tl.join(tl.join((w0 << 16) > limit, w0 > limit), tl.join((w2 << 16) > limit, w2 > limit))
    w13 = tl.join(tl.join((w1 << 16) > limit, w1 > limit), tl.join((w3 << 16) > limit, w3 > limit))
    kept = tl.join(w02, w13)  # [BLOCK_M, BLOCK_N / 8, half, word // 2, word % 2]
    if BLOCK_N >= 32:
        kept = kept.reshape(BLOCK_M, BLOCK_N // 32, 4, 2, 4)  # [BLOCK_M, group of 32, octet, half, word]
        return kept.permute(0, 1, 4, 2, 3).reshape(BLOCK_M, BLOCK_N)
    else:
        kept = kept.reshape(BLOCK_M, BLOCK_N // 8, 2, 4)  # [BLOCK_M, octet, half, word]
        return kept.permute(0, 1, 3, 2).reshape(BLOCK_M, BLOCK_N)


@triton.jit
def _keep_bits(word, limit):
    """A bit for each byte of a word, lowest first: 1 where its key is kept."""
    low = tl.where((word << 24) > limit, 1, 0) | tl.where((word << 16) > limit, 2, 0)
    return low | tl.where((word << 8) > limit, 4, 0) | tl.where(word > limit, 8, 0)


@triton.jit
def keep_by_rows(noise, queries, first_key, BLOCK_N: tl.constexpr):
    """What dropout keeps of a block whose rows are keys in order: bool [BLOCK_N, BLOCK_M].

    Sixteen keys are spread over eight threads here. Their decisions travel as the bits of one number.
    """
    BLOCK_M: tl.constexpr = queries.shape[0]
    sixteens = first_key // 16 + tl.arange(0, BLOCK_N // 16)  # [BLOCK_N / 16]
    words, limit = _words(noise, sixteens[:, None], queries[None, :])  # [BLOCK_N / 16, BLOCK_M] each
    low = _keep_bits(words[0], limit) | _keep_bits(words[1], limit) << 4
    high = _keep_bits(words[2], limit) << 8 | _keep_bits(words[3], limit) << 12
    # A sum along an axis, for the compiler would move anything simpler behind the broadcast, and do it sixteen times.
    bits = tl.sum(tl.join(low, high), 2)  # [BLOCK_N / 16, BLOCK_M]
    bits = bits.reshape(BLOCK_N // 16, 1, BLOCK_M).broadcast_to(BLOCK_N // 16, 16, BLOCK_M)
    own_bit = 1 << (tl.arange(0, BLOCK_N) % 16)  # [BLOCK_N]
    return bits.reshape(BLOCK_N, BLOCK_M) & own_bit[:, None] != 0

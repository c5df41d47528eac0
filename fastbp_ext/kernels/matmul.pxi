# The matrix product, for the three shapes of backpropagation and any layout.
#
# C[.., m, n] = sum over k of A[.., m, k] * B[.., k, n]. The order of that sum is a
# function of k alone: k is cut into blocks, each block is one ascending chain of
# multiply-adds from 0 (tile.h), and block after block is added to the total.
# Neither the layout nor the neighbours in a tile touch it.
#
# From the outside in: matmul takes the rows of a batch apart and may turn a product into
# its transpose, multiply cuts it into panels of columns and copies a panel of B where
# that pays, run_panel writes a turned C, run_rows chooses the kind of tile, run_tiles cuts
# rows into tiles, run_blocks finishes one tile. Products of one row, of one tile, of one
# number and of a few have shorter ways.
cdef extern from "tile.h" nogil:
    ctypedef struct fb_tile:
        const char* a
        const char* b
        char* c
        Py_ssize_t a_row
        Py_ssize_t a_k
        Py_ssize_t b_k
        Py_ssize_t b_column
        Py_ssize_t c_row
        Py_ssize_t k
        Py_ssize_t last
        Py_ssize_t rows
        const char* add
        Py_ssize_t add_row
        const Py_ssize_t* jumps
        Py_ssize_t pieces
        const char* begin
        Py_ssize_t begin_row

    const Py_ssize_t* FB_WHOLE "fb_whole"
    enum:
        FB_ROWS_1
        FB_ROWS_2
        FB_ROWS_3
        FB_ROWS_4
        FB_NARROW_ROWS
        FB_SHORT
        FB_VECTOR_BYTES
        FB_MASKED
        FB_BLOCK
        FB_SCRATCH
        FB_FAR
        FB_NEAR
        FB_REACH
        FB_L1
        FB_PACK_ROWS
        FB_FEW

    ctypedef void (*fb_tile_run)(const fb_tile* t) noexcept nogil
    fb_tile_run tile_of "v_tile_of"(const real* type, Py_ssize_t rows, Py_ssize_t vectors)
    fb_tile_run narrow_of "v_narrow_of"(const real* type, Py_ssize_t rows, Py_ssize_t groups)
    fb_tile_run short_of "v_short_of"(const real* type, Py_ssize_t k, Py_ssize_t vectors)
    fb_tile_run column_of "v_column_of"(const real* type)
    void transpose "v_transpose"(real* to, Py_ssize_t to_row, const real* source, Py_ssize_t from_row,
                                 Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t width)


# The operands of one product; strides in bytes.
cdef struct product:
    char* c
    const char* a
    const char* b
    Py_ssize_t m
    Py_ssize_t n
    Py_ssize_t k
    Py_ssize_t c_row
    Py_ssize_t a_row
    Py_ssize_t a_k
    Py_ssize_t b_k
    Py_ssize_t b_column
    bint turned  # C is written transposed: its columns are c_row apart
    bint add  # the product is added to C; not where C is turned, nor of one row
    const char* bias  # n numbers that are added to every row, or NULL; not where C is turned or k has blocks


cdef inline Py_ssize_t block_of(Py_ssize_t k) noexcept nogil:
    """The length of the blocks of a sum over k: as equal as multiples of 16 can be."""
    cdef Py_ssize_t count
    if k <= FB_BLOCK:
        return k
    count = (k + FB_BLOCK - 1) // FB_BLOCK
    return ((k + count - 1) // count + 15) & -16


cdef inline void run_blocks(fb_tile_run run, fb_tile* t, Py_ssize_t k, Py_ssize_t block, const char* bias,
                            bint add) noexcept nogil:
    """One tile of C: its blocks of k, one after the other; a bias only where there is one block."""
    cdef Py_ssize_t left = k
    t.add = t.c if add else bias
    t.add_row = t.c_row if add else 0
    t.k = min(block, left)
    run(t)
    t.add = t.c
    t.add_row = t.c_row
    while left > block:
        left -= block
        t.a += block * t.a_k
        t.b += block * t.b_k
        t.k = min(block, left)
        run(t)


cdef inline int doublings_of(Py_ssize_t n, Py_ssize_t a_k, Py_ssize_t k) noexcept nogil:
    """1 or 2 where 2 or 4 rows of a panel of n columns go into one vector, else 0."""
    if a_k != sizeof(real) or k * a_k < 16:
        return 0
    return 2 if 4 * n <= LANES and FB_VECTOR_BYTES == 64 else 1 if 2 * n <= LANES and FB_VECTOR_BYTES >= 32 else 0


cdef inline void run_tiles(fb_tile* t, Py_ssize_t rows, Py_ssize_t vectors, int doublings, Py_ssize_t limit,
                           Py_ssize_t k, Py_ssize_t block, const char* bias, bint add) noexcept nogil:
    """Rows of a panel, in tiles as equally high as can be, so none is a sliver."""
    cdef:
        Py_ssize_t units = rows >> doublings, count = 1, height = units, higher = 0, r
        const char* a = t.a
        const char* b = t.b
        char* c = t.c
    if units > limit:
        count = (units + limit - 1) // limit
        height = units // count + 1
        higher = units % count
    for r in range(count):
        if r == higher and count > 1:
            height -= 1
        t.a = a
        t.b = b
        t.c = c
        run_blocks(narrow_of(<const real*>c, height, 1 << doublings) if doublings else
                   tile_of(<const real*>c, height, vectors), t, k, block, bias, add)
        a += (height << doublings) * t.a_row
        c += (height << doublings) * t.c_row
    t.a = a
    t.b = b
    t.c = c


cdef inline Py_ssize_t highest(Py_ssize_t vectors) noexcept nogil:
    """How many rows a tile of 1 to 4 vectors has at most."""
    return (FB_ROWS_1 if vectors == 1 else FB_ROWS_2 if vectors == 2 else FB_ROWS_3 if vectors == 3 else FB_ROWS_4)


cdef inline void run_rows(fb_tile* t, Py_ssize_t rows, Py_ssize_t vectors, Py_ssize_t k, Py_ssize_t block,
                          const char* bias, bint add) noexcept nogil:
    """A panel of C; rows that do not fill a vector with others come last."""
    cdef:
        int doublings = doublings_of(t.last, t.a_k, k) if vectors == 1 else 0
        Py_ssize_t some
    if k <= FB_SHORT and vectors <= 2 and not (add or doublings):
        t.k = k
        t.rows = rows
        t.add = bias
        short_of(<const real*>t.c, k, vectors)(t)
        return
    while rows > 0:
        if rows < 1 << doublings:
            doublings = 0
        some = rows & -(<Py_ssize_t>1 << doublings)
        run_tiles(t, some, vectors, doublings, FB_NARROW_ROWS if doublings else highest(vectors), k, block,
                  bias, add)
        rows -= some


cdef inline void pack_rows(real* to, const char* b, Py_ssize_t b_k, Py_ssize_t k, Py_ssize_t vectors,
                           Py_ssize_t last) noexcept nogil:
    """k rows of a panel of B, padded with zeros to whole vectors; unit stride along n."""
    cdef Py_ssize_t r, v
    for r in range(k):
        for v in range(vectors - 1):
            store_all(to + v * LANES, load_all(<const real*>b + v * LANES))
        store_all(to + (vectors - 1) * LANES, load(<const real*>b + (vectors - 1) * LANES, last))
        to += vectors * LANES
        b += b_k


cdef inline void pack_columns(real* to, const char* b, Py_ssize_t b_column, Py_ssize_t k, Py_ssize_t vectors,
                              Py_ssize_t last) noexcept nogil:
    """The same, where B has unit stride along k: transposed on the way."""
    cdef Py_ssize_t r, v
    for v in range(vectors):
        r = 0
        while r < k:
            transpose(to + (r * vectors + v) * LANES, vectors * LANES * <Py_ssize_t>sizeof(real),
                      <const real*>(b + v * LANES * b_column) + r, b_column,
                      LANES if v < vectors - 1 else last, k - r, LANES)
            r += LANES


cdef inline void turn(const product* p, const real* rows, Py_ssize_t pitch, Py_ssize_t row, Py_ssize_t m,
                      Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Rows [row, row + m), columns [first, first + count) of a turned C, from rows of `pitch` elements."""
    cdef:
        char* c = p.c + first * p.c_row + row * <Py_ssize_t>sizeof(real)
        Py_ssize_t j = 0
    while j < count:
        transpose(<real*>(c + j * p.c_row), p.c_row, rows + j, pitch * <Py_ssize_t>sizeof(real),
                  m, min(<Py_ssize_t>LANES, count - j), m)
        j += LANES


cdef inline void run_panel(const product* p, fb_tile* t, Py_ssize_t rows, Py_ssize_t vectors, Py_ssize_t k,
                           Py_ssize_t block, bint add, Py_ssize_t column, real* part) noexcept nogil:
    """A panel of C from column `column` on; of a turned C, LANES rows at a time by way of `part`."""
    cdef:
        Py_ssize_t r = 0, some = rows
        const char* a = t.a
        const char* b = t.b
        const char* bias = p.bias + column * <Py_ssize_t>sizeof(real) if p.bias != NULL else NULL
    if p.turned:
        some = LANES
        t.c_row = vectors * LANES * <Py_ssize_t>sizeof(real)
    while r < rows:
        some = min(some, rows - r)
        t.a = a + r * t.a_row
        t.b = b
        if p.turned:
            t.c = <char*>part
        run_rows(t, some, vectors, k, block, bias, add)
        if p.turned:
            turn(p, part, vectors * LANES, r, some, column, (vectors - 1) * LANES + t.last)
        r += some


cdef inline void begin_whole(fb_tile* t) noexcept nogil:
    """k is one piece, and chains begin with 0."""
    t.jumps = FB_WHOLE
    t.pieces = 1
    t.begin = <const char*>FB_WHOLE
    t.begin_row = 0


cdef inline void multiply_row(const product* p) noexcept nogil:
    """A product of one row: nothing is copied, B is read once."""
    cdef:
        fb_tile t
        real part[8 * LANES]
        bint transposed = p.n > 1 and p.b_column != sizeof(real)
        # Long rows of a transposed B, a power of 2 apart, drive each other out of L1.
        bint few = not transposed or 4 * LANES * max(p.b_column, -p.b_column) <= FB_L1
        Py_ssize_t block = block_of(p.k), left = (p.n + LANES - 1) // LANES, done = 0, v, width, j
        const char* bias
    begin_whole(&t)
    t.a_row = t.c_row = 0
    t.a_k = p.a_k
    t.b_k = p.b_k
    t.b_column = p.b_column
    while left > 0:
        v = 8 if left >= 8 and not transposed else 4 if left >= 4 and few else min(<Py_ssize_t>2, left)
        width = min(v * LANES, p.n - done)
        t.a = p.a
        t.b = p.b + done * p.b_column
        t.c = <char*>part if p.turned else p.c + done * <Py_ssize_t>sizeof(real)
        bias = p.bias + done * <Py_ssize_t>sizeof(real) if p.bias != NULL else NULL
        if transposed:
            t.last = width
            run_blocks(column_of(<const real*>t.c), &t, p.k, block, bias, False)
        else:
            t.last = width - (v - 1) * LANES
            run_blocks(tile_of(<const real*>t.c, 1, v), &t, p.k, block, bias, False)
        if p.turned:
            for j in range(width):
                (<real*>(p.c + (done + j) * p.c_row))[0] = part[j]
        done += width
        left -= v


cdef inline void multiply(const product* p) noexcept nogil:
    """One product: blocks of rows of A, as many as stay in L2, by panels of columns of B."""
    cdef:
        fb_tile t
        real part[LANES * 4 * LANES]
        char memory[FB_SCRATCH + 64]
        real* scratch = <real*>(memory + (-<Py_ssize_t>memory & 63))
        Py_ssize_t size = sizeof(real), vectors = (p.n + LANES - 1) // LANES, block = block_of(p.k)
        Py_ssize_t widest = 4 if p.m <= FB_ROWS_4 else 3
        Py_ssize_t at_once = p.m, first = 0, done, rows, left, v, piece, k
        bint transposed = p.n > 1 and p.b_column != size, edge, packed
        # The last vector is a panel of its own where its few columns take several rows a vector.
        bint apart = vectors > 1 and p.n % LANES and p.m >= LANES and doublings_of(p.n % LANES, p.a_k, p.k) > 0
    if p.m == 1 and (transposed or FB_MASKED or p.n % LANES == 0):
        multiply_row(p)
        return
    begin_whole(&t)
    t.a_row = p.a_row
    t.a_k = p.a_k
    if p.m > FB_ROWS_3 and (p.k <= FB_SHORT or FB_ROWS_3 < 8 and p.a_row == size):
        # Low tiles take few of the elements in a line of a transposed A.
        widest = 2
    if transposed:
        widest = min(widest, 3)
    # A copy of B pays where many tiles read its rows and they lie on too many pages or, a multiple
    # of 4 KB apart, in the few lines of the caches that they share (strips read them faster there);
    # 2 KB where A is transposed, whose rows need as many lines.
    packed = (transposed or p.m >= FB_PACK_ROWS and p.k * max(p.b_k, -p.b_k) > FB_REACH
              or p.m >= 2 * FB_PACK_ROWS and p.b_k & (2047 if p.a_row == size else 4095) == 0)
    if p.m > 2 * FB_ROWS_2 and not p.turned:
        at_once = max((FB_FAR if packed else FB_NEAR) // (p.k * size) & -LANES, <Py_ssize_t>LANES)
    while first < p.m:
        rows = min(at_once, p.m - first)
        done = 0
        while done < vectors:
            left = vectors - done
            if left > 1 and apart:
                left -= 1
            v = min(widest, left)
            if v == 3 and left == 4:
                v = 2
            # Without masked loads a last vector that is not whole has to be packed.
            edge = not FB_MASKED and done + v == vectors and p.n % LANES
            if edge and v == 4:
                v, edge = 3, False
            t.last = min(<Py_ssize_t>LANES, p.n - (done + v - 1) * LANES)
            t.c_row = p.c_row
            piece, k = p.k, 0
            if (packed or edge) and piece * v * LANES * size > FB_SCRATCH:
                piece = FB_SCRATCH // (block * v * LANES * size) * block
            while k < p.k:
                piece = min(piece, p.k - k)
                t.a = p.a + first * p.a_row + k * p.a_k
                t.b = p.b + k * p.b_k + done * LANES * p.b_column
                t.c = p.c + first * p.c_row + done * LANES * size
                t.b_k = p.b_k
                if packed or edge:
                    if transposed:
                        pack_columns(scratch, t.b, p.b_column, piece, v, t.last)
                    else:
                        pack_rows(scratch, t.b, p.b_k, piece, v, t.last)
                    t.b = <const char*>scratch
                    t.b_k = v * LANES * size
                run_panel(p, &t, rows, v, piece, block, p.add or k > 0, done * LANES, part)
                k += piece
            done += v
        first += rows


cdef inline void multiply_tile(const product* p, Py_ssize_t vectors) noexcept nogil:
    """A product that is one tile."""
    cdef fb_tile t
    begin_whole(&t)
    t.a = p.a
    t.b = p.b
    t.c = p.c
    t.a_row = p.a_row
    t.a_k = p.a_k
    t.b_k = p.b_k
    t.c_row = p.c_row
    t.k = p.k
    t.last = p.n - (vectors - 1) * LANES
    t.add = p.bias
    t.add_row = 0
    tile_of(<const real*>t.c, p.m, vectors)(&t)


cdef inline void multiply_few(const product* p) noexcept nogil:
    """A product of so few numbers that setting up tiles takes longer; its chains are theirs."""
    cdef Py_ssize_t r, j, q
    cdef real sum
    for r in range(p.m):
        for j in range(p.n):
            sum = 0
            for q in range(p.k):
                sum = fma_one((<const real*> (p.a + r * p.a_row + q * p.a_k))[0],
                              (<const real*> (p.b + q * p.b_k + j * p.b_column))[0], sum)
            (<real*> (p.c + r * p.c_row))[j] = sum + (<const real*>p.bias)[j] if p.bias != NULL else sum


cdef inline void multiply_dot(const product* p) noexcept nogil:
    """A product of one number: the chains of eight blocks run side by side."""
    cdef:
        Py_ssize_t block = block_of(p.k), left = p.k, together, last, q, e
        Py_ssize_t a_block = block * p.a_k, b_block = block * p.b_k
        const char* a = p.a
        const char* b = p.b
        real total = 0
        real sum[8]
    while left > 0:
        together = 8 if left > 7 * block else 1
        last = min(block, left - (together - 1) * block)
        for e in range(8):
            sum[e] = 0
        if together == 8:
            for q in range(last):
                for e in range(8):
                    sum[e] = fma_one((<const real*> (a + q * p.a_k + e * a_block))[0],
                                     (<const real*> (b + q * p.b_k + e * b_block))[0], sum[e])
        for e in range(together):
            for q in range(last if together == 8 else 0, last if e == together - 1 else block):
                sum[e] = fma_one((<const real*> (a + q * p.a_k + e * a_block))[0],
                                 (<const real*> (b + q * p.b_k + e * b_block))[0], sum[e])
            total = sum[e] if left == p.k and e == 0 else total + sum[e]
        a += together * a_block
        b += together * b_block
        left -= (together - 1) * block + last
    (<real*>p.c)[0] = total


cdef inline void add_rows(const product* p, const char* bias) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(p.m if bias != NULL else 0):
        fold_into(<real*>(p.c + r * p.c_row), <const real*>bias, p.n, fold_sum)


cdef inline bint turns(const product* p) noexcept nogil:
    """Whether the transposed product is the faster way to the same sums."""
    cdef Py_ssize_t high, wide, copied
    if p.m == 1 or p.n == 1:
        return p.m > 1
    if p.b_column == sizeof(real):
        # Narrow: it fills its vectors better.
        if p.n > LANES // 4 * 3 or p.k <= FB_SHORT:
            return False
        if p.a_row == sizeof(real):
            return p.n * ((p.m + LANES - 1) // LANES) < p.m
        return p.m >= 2 * LANES and p.k >= 2 * LANES and not doublings_of(p.n, p.a_k, p.k)
    # A copy of B, or one of C and mostly one of A: eight elements are transposed in about
    # the time of a vector's multiply-adds.
    high = (p.m + LANES - 1) // LANES
    wide = (p.n + LANES - 1) // LANES
    copied = p.n if p.a_row == sizeof(real) else p.n + p.k
    return p.k <= FB_BLOCK and p.n * high * p.k + copied * p.m * 8 // LANES < p.m * wide * p.k + p.n * p.k * 8 // LANES


cdef inline void matmul(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """C[.., m, n] = sum over k of A[.., m, k] * B[.., k, n], rows [start, stop) of all (.., m).

    A fourth operand is a bias of n numbers, which is added to every row: as the tiles are stored,
    or, where that is simple no more, behind the product.
    """
    cdef:
        Py_ssize_t d = i.ndim - 3, m = i.shape[i.ndim - 3], row, index, place, e, r, j, vectors
        Py_ssize_t piece, left
        const Py_ssize_t* c = i.stride[0]
        const Py_ssize_t* a = i.stride[1]
        const Py_ssize_t* b = i.stride[2]
        const char* bias = i.p[3] if i.operands > 3 else NULL
        product p, q
        product* way
    p.n = i.shape[d + 1]
    p.k = i.shape[d + 2]
    if p.n == 0:
        return
    vectors = (p.n + LANES - 1) // LANES
    p.turned = False
    p.bias = bias if p.k <= FB_BLOCK else NULL
    p.c_row = c[d]
    p.a_row = a[d]
    p.a_k = a[d + 2]
    p.b_k = b[d + 2]
    p.b_column = b[d + 1]
    if d == 0 and (stop - start) * p.n * p.k <= FB_FEW:
        p.m = stop - start
        p.c = i.p[0] + (0 if i.tile[0] else start * p.c_row)
        p.a = i.p[1] + start * p.a_row
        p.b = i.p[2]
        multiply_few(&p)
        return
    # A batch that shares B and lies evenly is one tall product.
    while d > 0 and b[d - 1] == 0 and c[d - 1] == m * p.c_row and a[d - 1] == m * p.a_row:
        d -= 1
        m *= i.shape[d]
    while start < stop:
        p.c = i.p[0]
        p.a = i.p[1]
        p.b = i.p[2]
        row = start
        if d > 0:
            index = start // m
            row = start % m
            for e in range(d - 1, -1, -1):
                place = index % i.shape[e]
                index //= i.shape[e]
                p.c += place * c[e]
                p.a += place * a[e]
                p.b += place * b[e]
        p.m = min(stop - start, m - row)
        p.k = i.shape[i.ndim - 1]
        p.add = False
        p.c += 0 if i.tile[0] else row * p.c_row
        p.a += row * p.a_row
        start += p.m
        if p.k == 0:
            for r in range(p.m):
                for j in range(p.n):
                    (<real*>(p.c + r * p.c_row))[j] = 0
            add_rows(&p, bias)
            continue
        if p.m == 1 and p.n == 1:
            multiply_dot(&p)
            add_rows(&p, bias)
            continue
        if p.b_column != sizeof(real):
            if p.m * p.n * p.k <= FB_FEW:
                multiply_few(&p)
                continue
        elif vectors <= 4 and p.m <= highest(vectors) and p.k <= FB_BLOCK and (FB_MASKED or p.n % LANES == 0):
            multiply_tile(&p, vectors)
            continue
        way = &p
        if turns(&p):
            way = &q
            q.add = False
            q.turned = p.n > 1 or p.c_row != sizeof(real)
            q.c = p.c
            q.c_row = p.c_row
            q.k = p.k
            q.m = p.n
            q.n = p.m
            q.a = p.b
            q.b = p.a
            q.a_row = p.b_column
            q.a_k = p.b_k
            q.b_k = p.a_k
            q.b_column = p.a_row
            q.bias = NULL
        # A tall product goes block by block of k: what a block reads of A and B stays in L2.
        left = way.k
        piece = block_of(left) if way.m >= FB_PACK_ROWS and not way.turned else left
        while left > 0:
            way.k = min(piece, left)
            multiply(way)
            way.a += piece * way.a_k
            way.b += piece * way.b_k
            way.add = True
            left -= piece
        if bias != way.bias:
            add_rows(&p, bias)


cdef inline void turn_copy(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = x, where the last dimension lies densely in y and the one before it in x: block by block.

    Units are the rows of y; p: y, x, of any type of this size.
    """
    cdef:
        int d = i.ndim - 2, e
        Py_ssize_t size = sizeof(real), columns = i.shape[d + 1], row, end, index, b
        const Py_ssize_t* y_step = i.stride[0]
        const Py_ssize_t* x_step = i.stride[1]
        char* y
        const char* x
    while start < stop:
        index = start // i.shape[d]
        row = start % i.shape[d]
        end = min(row + stop - start, i.shape[d])
        start += end - row
        y = i.p[0]
        x = i.p[1]
        for e in range(d - 1, -1, -1):
            y += index % i.shape[e] * y_step[e]
            x += index % i.shape[e] * x_step[e]
            index //= i.shape[e]
        while row < end:
            b = 0
            while b < columns:
                transpose(<real*>(y + row * y_step[d] + b * size), y_step[d],
                          <const real*>(x + row * size + b * x_step[d + 1]), x_step[d + 1],
                          min(columns - b, <Py_ssize_t>LANES), min(end - row, <Py_ssize_t>LANES),
                          min(columns - b, <Py_ssize_t>LANES))
                b += LANES
            row += LANES


cdef inline dict matmul_kernels():
    return {"matmul": <size_t>&matmul, "turn_copy": <size_t>&turn_copy}

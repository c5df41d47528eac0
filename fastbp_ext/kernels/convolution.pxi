# Convolution and pooling: windows that slide over maps.
#
# Maps lie batch last, x (C, H, W, N) and y (O, OH, OW, N), weights w (O, C / groups, KH, KW), all in C
# order. So a pixel of a channel is a row of N numbers, every loop runs over whole vectors of the batch,
# and no window is copied: the register tiles of the matrix product (tile.h) take rows of weights times
# rows of x that lie where the window is, k in as many pieces as the window has rows. Pixels side by
# side that have the same taps make one row of N times as many numbers, so a batch of one fills vectors too.
#
# A sum runs over channels, rows and columns of the window, ascending, without what lies outside the
# map, in blocks of at most FB_BLOCK: its bits do not depend on the neighbours, nor on the batch. (Where
# short rows are packed, what lies outside counts as zeros: the same sum.)
#
# Space: OH, OW, N, groups, O / groups, C / groups, KH, KW, H, W. The last operand's strides hold the
# geometry: stride, padding, dilation, each for rows and columns; whether a max pool takes in a ReLU, and whether
# each pixel of x is in one window, and in one only.

cdef extern from "tile.h" nogil:
    ctypedef struct fb_dots:
        const char* a
        const char** b
        Py_ssize_t a_row
        Py_ssize_t high
        Py_ssize_t wide
        Py_ssize_t n
        Py_ssize_t a_high
        Py_ssize_t a_wide
        Py_ssize_t b_high
        Py_ssize_t b_wide

    enum:
        FB_DOT_ROWS
        FB_DOT_COLUMNS

    ctypedef void (*fb_dots_run)(const fb_dots* d, void* to) noexcept nogil
    fb_dots_run dots_of "v_dots_of"(const real* type, Py_ssize_t rows, Py_ssize_t columns)

cdef enum:
    MAP_H = 0      # places in the space: of the smaller map, y,
    BATCH = 2
    GROUPS = 3
    OUTS = 4       # of one group
    INS = 5
    KERNEL_H = 6
    SOURCE_H = 8   # of the larger map, x
    STRIDE = 0     # places in the geometry; columns follow rows
    PADDING = 2
    DILATION = 4
    RELU = 6
    CUTS = 7


# What a window finds along one axis: `count` taps first, first + step, ... that read start, start + move, ...
cdef struct taps:
    Py_ssize_t first
    Py_ssize_t step
    Py_ssize_t count
    Py_ssize_t start
    Py_ssize_t move


cdef inline const Py_ssize_t* geometry_of(const fb_instruction* i) noexcept nogil:
    return i.stride[FB_OPERANDS - 1]


cdef inline Py_ssize_t place_of(const fb_instruction* i, int axis, Py_ssize_t at, Py_ssize_t k,
                                bint back) noexcept nogil:
    """The place of x that tap k of place `at` of y reads, or (back) of y that read place `at` of x by tap k; or -1."""
    cdef:
        const Py_ssize_t* g = geometry_of(i) + axis
        Py_ssize_t place = at * g[STRIDE] - g[PADDING] + k * g[DILATION]
    if back:
        place = at + g[PADDING] - k * g[DILATION]
        if g[STRIDE] > 1 and place > 0:
            place = place // g[STRIDE] if place % g[STRIDE] == 0 else -1
    return place if 0 <= place < i.shape[(MAP_H if back else SOURCE_H) + axis] else -1


cdef inline taps find_taps(const fb_instruction* i, int axis, Py_ssize_t at, bint back) noexcept nogil:
    """The taps of place `at` of y that read x; or (back) those by which place `at` of x was read, and from where."""
    cdef:
        const Py_ssize_t* g = geometry_of(i) + axis
        Py_ssize_t k, place, last, size = i.shape[(MAP_H if back else SOURCE_H) + axis]
        taps t
    t.first = 0
    t.step = 1
    t.count = i.shape[KERNEL_H + axis]
    t.start = at + g[PADDING] if back else at * g[STRIDE] - g[PADDING]
    t.move = -g[DILATION] if back else g[DILATION]
    last = t.start + (t.count - 1) * t.move
    if (g[STRIDE] == 1 or not back) and 0 <= min(t.start, last) and max(t.start, last) < size:
        return t    # the whole window lies inside
    t.step = t.count = t.start = t.move = 0
    for k in range(i.shape[KERNEL_H + axis]):
        place = place_of(i, axis, at, k, back)
        if place >= 0:
            if t.count == 0:
                t.first = k
                t.start = place
            elif t.count == 1:
                t.step = k - t.first
                t.move = place - t.start
            t.count += 1
    return t


ctypedef taps (*finding)(const fb_instruction* i, int axis, Py_ssize_t at, bint back) noexcept nogil
ctypedef void (*sliding)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, bint back) noexcept nogil

cdef extern from "simd.h" nogil:
    finding outlined_finding "FB_OUTLINED"(finding f)
    sliding outlined_sliding "FB_OUTLINED"(sliding f)

cdef inline taps taps_of(const fb_instruction* i, int axis, Py_ssize_t at, bint back) noexcept nogil:
    return outlined_finding(find_taps)(i, axis, at, back)


cdef inline taps reach_of(const fb_instruction* i, int axis, Py_ssize_t k) noexcept nogil:
    """The places of y whose tap k lies inside x: `count` from `first` on, which read start, start + move, ..."""
    cdef:
        const Py_ssize_t* g = geometry_of(i) + axis
        Py_ssize_t before = g[PADDING] - k * g[DILATION], size = i.shape[SOURCE_H + axis], end
        taps t
    t.step = 1
    t.move = g[STRIDE]
    t.first = (before + g[STRIDE] - 1) // g[STRIDE] if before > 0 else 0
    end = (size - 1 + before) // g[STRIDE] + 1 if size - 1 + before >= 0 else 0
    t.count = max(min(end, i.shape[MAP_H + axis]) - t.first, <Py_ssize_t>0)
    t.start = t.first * g[STRIDE] - before
    return t


cdef inline void narrow_rows(const fb_tile* t, Py_ssize_t rows) noexcept nogil:
    """A tile of less than a vector, where masks are not free: four rows side by side."""
    cdef:
        Py_ssize_t r = 0, m = t.last, piece, k, e, some
        const char* a
        const char* b
        vec x
        vec acc[4]
    while r < rows:
        some = min(rows - r, <Py_ssize_t>4)
        for e in range(some):
            acc[e] = splat((<const real*>(t.begin + (r + e) * t.begin_row))[0])
        for piece in range(t.pieces):
            a = t.a + t.jumps[2 * piece] + r * t.a_row
            b = t.b + t.jumps[2 * piece + 1]
            for k in range(t.k):
                x = load(<const real*>b, m)
                for e in range(some):
                    acc[e] = fma(splat((<const real*>(a + e * t.a_row))[0]), x, acc[e])
                a += t.a_k
                b += t.b_k
        for e in range(some):
            x = acc[e]
            if t.add != NULL:
                x = x + load(<const real*>(t.add + (r + e) * t.add_row), m)
            store(<real*>(t.c + (r + e) * t.c_row), x, m)
        r += some


cdef inline void run_columns(fb_tile* t, Py_ssize_t rows, Py_ssize_t n, bint add) noexcept nogil:
    """rows by n sums, in tiles as equally high as can be."""
    cdef:
        Py_ssize_t size = sizeof(real), left = (n + LANES - 1) // LANES, v, r, count, height, higher, limit
        Py_ssize_t widest = 8 if rows == 1 else 4 if rows <= FB_ROWS_4 else 3 if rows <= FB_ROWS_3 else 2
        const char* a = t.a
    while n > 0:
        v = min(widest, left)
        if 4 < v < 8:
            v = 4
        t.last = min(n - (v - 1) * LANES, <Py_ssize_t>LANES)
        if not FB_MASKED and t.last < LANES and v > 1:    # the last vector comes for itself
            v -= 4 if v == 8 else 1
            t.last = LANES
        t.add = t.c if add else NULL
        t.add_row = t.c_row
        if not FB_MASKED and t.last < LANES:
            narrow_rows(t, rows)
        else:
            limit = 1 if v == 8 else highest(v)
            count = (rows + limit - 1) // limit
            height = rows // count + 1
            higher = rows % count
            for r in range(count):
                if r == higher:
                    height -= 1
                tile_of(<const real*>t.c, height, v)(t)
                t.a += height * t.a_row
                t.c += height * t.c_row
                t.begin += height * t.begin_row
                if add:
                    t.add = t.c
            t.a = a
            t.c -= rows * t.c_row
            t.begin -= rows * t.begin_row
        t.b += v * LANES * size
        t.c += v * LANES * size
        n -= v * LANES
        left -= v


cdef inline bint is_broken(const fb_instruction* i, Py_ssize_t wide, bint back) noexcept nogil:
    """Whether a row of a batch of less than a vector is more than one run of pixels with the same taps."""
    cdef taps first, t
    cdef Py_ssize_t w
    if i.shape[BATCH] >= LANES or i.shape[KERNEL_H + 1] > FB_BLOCK:
        return False
    first = taps_of(i, 1, 0, back)
    for w in range(1, wide):
        t = taps_of(i, 1, w, back)
        if t.count != first.count or t.first != first.first or t.start != first.start + w:
            return True
    return False


cdef inline void run_packed(const fb_instruction* i, fb_tile* t, const Py_ssize_t* jumps, Py_ssize_t rows, char* y,
                            const char* x, Py_ssize_t wide, bint back, bint add) noexcept nogil:
    """A row whose runs are short, a few vectors at a time: what all taps read is copied, zeros from outside the map."""
    cdef:
        Py_ssize_t n = i.shape[BATCH], width = i.shape[KERNEL_H + 1], at_once = 3 * LANES // n
        Py_ssize_t column = 0, pixels, pitch, k, piece, w, e, low, high
        Py_ssize_t own[2 * FB_BLOCK]
        Py_ssize_t places[3 * LANES + 1]
        bint together
        char memory[FB_SCRATCH + 64]
        real* scratch = <real*>(memory + (-<Py_ssize_t>memory & 63))
        real* to
        const real* source
    t.jumps = own
    t.k = width
    t.a_k = sizeof(real)
    while column < wide:
        pixels = min(at_once, wide - column)
        pitch = (pixels * n + LANES - 1) // LANES * LANES
        for k in range(width):
            low = high = pixels    # the end of the places, where there is none inside
            places[pixels] = 0
            together = True    # what is inside the map lies side by side
            for w in range(pixels - 1, -1, -1):
                places[w] = place_of(i, 1, column + w, k, back)
                if places[w] >= 0:
                    together = together and (low == pixels or low == w + 1 and places[w + 1] == places[w] + 1)
                    high = w + 1 if low == pixels else high
                    low = w
            for piece in range(t.pieces):
                source = <const real*>(x + jumps[2 * piece + 1])
                to = scratch + (piece * width + k) * pitch
                e = 0
                while e < pitch:
                    store_all(to + e, splat(0))
                    e += LANES
                if together:
                    memcpy(to + low * n, source + places[low] * n, (high - low) * n * sizeof(real))
                    continue
                for w in range(low, high):
                    for e in range(n if places[w] >= 0 else 0):
                        to[w * n + e] = source[places[w] * n + e]
        for piece in range(t.pieces):
            own[2 * piece] = jumps[2 * piece]
            own[2 * piece + 1] = piece * width * pitch * <Py_ssize_t>sizeof(real)
        t.b = <const char*>scratch
        t.b_k = pitch * sizeof(real)
        t.c = y + column * n * <Py_ssize_t>sizeof(real)
        run_columns(t, rows, pixels * n, add)
        column += pixels


cdef inline void run_windows(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, bint back) noexcept nogil:
    """Rows start .. stop of all groups' maps: y from x and w, or (back) dx from dy and w."""
    cdef:
        Py_ssize_t size = sizeof(real), n = i.shape[BATCH]
        int to = SOURCE_H if back else MAP_H, source = MAP_H if back else SOURCE_H
        Py_ssize_t high = i.shape[to], wide = i.shape[to + 1], pixels = i.shape[source] * i.shape[source + 1]
        Py_ssize_t kernel_h = i.shape[KERNEL_H], kernel_w = i.shape[KERNEL_H + 1]
        Py_ssize_t rows = i.shape[INS] if back else i.shape[OUTS], depth = i.shape[OUTS] if back else i.shape[INS]
        Py_ssize_t filter = kernel_h * kernel_w * size, kernels = i.shape[INS] * filter    # bytes
        Py_ssize_t w_row = filter if back else kernels, w_depth = kernels if back else filter
        Py_ssize_t at_once = max(FB_BLOCK // kernel_w, <Py_ssize_t>1)    # rows of windows in a block of the sum
        Py_ssize_t jumps[2 * FB_BLOCK]
        Py_ssize_t unit, group, done, last, c, j, at, place, column, run
        bint packs = is_broken(i, i.shape[to + 1], back)
        taps th, tw, ahead
        char* y
        const char* x
        const char* w
        fb_tile t
    t.a_row = w_row
    t.c_row = high * wide * n * size
    for unit in range(start, stop):
        group = unit // high
        y = i.p[0] + (group * rows * high + unit % high) * wide * n * size
        x = i.p[1] + group * depth * pixels * n * size
        w = i.p[2] + group * i.shape[OUTS] * kernels
        th = taps_of(i, 0, unit % high, back)
        begin_whole(&t)
        if i.operands > 3:
            t.begin = i.p[3] + group * rows * size
            t.begin_row = size
        done = 0
        while done == 0 or done < depth * kernel_h:
            last = min(done + at_once, depth * kernel_h)
            t.jumps = jumps
            t.pieces = 0
            for c in range(done // kernel_h, (last + kernel_h - 1) // kernel_h):
                for j in range(th.count):
                    place = th.first + j * th.step
                    if done <= c * kernel_h + place < last:
                        at = c * pixels + (th.start + j * th.move) * i.shape[source + 1]
                        jumps[2 * t.pieces] = c * w_depth + place * kernel_w * size
                        jumps[2 * t.pieces + 1] = at * n * size
                        t.pieces += 1
            column = 0
            if packs:
                t.a = w
                run_packed(i, &t, jumps, rows, y, x, wide, back, done > 0)
                column = wide
            ahead = taps_of(i, 1, 0, back)
            while column < wide:
                tw = ahead
                run = 0
                while column + run < wide and ahead.count == tw.count and ahead.first == tw.first and (
                        run == 0 or ahead.start == tw.start + run):
                    run += 1
                    if column + run < wide:
                        ahead = taps_of(i, 1, column + run, back)
                t.k = tw.count
                t.a = w + tw.first * size
                t.a_k = tw.step * size
                t.b = x + tw.start * n * size
                t.b_k = tw.move * n * size
                t.c = y + column * n * size
                run_columns(&t, rows, run * n, done > 0)
                column += run
            begin_whole(&t)    # the bias is in the first block's chains
            done = last


cdef inline void convolve(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y[o, h, w, n] = the sum over c and the window's rows and columns k, j of
    x[c, sh h - ph + dh k, sw w - pw + dw j, n] w[o, c, k, j].

    p: y, x, w and, where there is one, a bias of each o, with which the sums begin.
    """
    outlined_sliding(run_windows)(i, start, stop, False)


cdef inline void convolve_input(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """dx[c, ...] = the sum over o, k, j of dy[o, ...] w[o, c, k, j], where y read x; p: dx, dy, w."""
    outlined_sliding(run_windows)(i, start, stop, True)


cdef enum:
    LONGEST = 1024    # vectors that one chain of a weight's gradient adds up

cdef inline void dot_columns(const fb_instruction* i, Py_ssize_t o, Py_ssize_t rows, Py_ssize_t k, Py_ssize_t j,
                             taps th, taps tw, Py_ssize_t first, Py_ssize_t count, bint whole, Py_ssize_t top,
                             Py_ssize_t bottom) noexcept nogil:
    """What rows top .. bottom of dy add to dw[o .. o + rows, c, k, j], the first of them (top = 0) to nothing.

    Of entries first .. first + count of the list of c, or (whole) of (c, j). th, tw: the reaches of k and of j.
    """
    cdef:
        Py_ssize_t size = sizeof(real), n = i.shape[BATCH] * size, wide = i.shape[SOURCE_H + 1] * n, r, e, c, left
        Py_ssize_t kernel_w = i.shape[KERNEL_H + 1], inside = i.shape[KERNEL_H] * kernel_w, place, skipped
        const char* x
        real* to
        const char* b[FB_DOT_COLUMNS]
        real sum[FB_DOT_ROWS * FB_DOT_COLUMNS]
        real part[FB_DOT_ROWS * FB_DOT_COLUMNS + LANES]    # written in whole vectors
        fb_dots d
    x = i.p[2] + o // i.shape[OUTS] * i.shape[INS] * i.shape[SOURCE_H] * wide
    d.b = b
    d.a_row = i.shape[MAP_H] * i.shape[MAP_H + 1] * n
    d.a_high = i.shape[MAP_H + 1] * n
    d.a_wide = n
    d.b_high = th.move * wide
    d.b_wide = tw.move * n
    d.wide = tw.count
    d.n = i.shape[BATCH]
    if tw.move == 1:    # the pixels of a row lie side by side in both maps
        d.n *= tw.count
        d.wide = 1
    skipped = max(top - th.first, <Py_ssize_t>0)
    d.high = max(min(bottom, th.first + th.count) - th.first - skipped, <Py_ssize_t>0) if tw.count > 0 else 0
    d.a = i.p[1] + o * d.a_row + ((th.first + skipped) * i.shape[MAP_H + 1] + tw.first) * n
    for e in range(count):
        c = (first + e) // kernel_w if whole else first + e
        place = tw.start + (first + e) % kernel_w * geometry_of(i)[DILATION + 1] if whole else tw.start
        b[e] = x + (c * i.shape[SOURCE_H] + th.start + skipped * th.move) * wide + place * n
    for e in range(rows * count):
        sum[e] = 0
    left = d.n
    while left > 0:
        d.n = min(left, <Py_ssize_t>(LONGEST * LANES))
        dots_of(sum, rows, count)(&d, part)
        for e in range(rows * count):
            sum[e] += part[e]
        d.a += d.n * size
        for e in range(count):
            b[e] += d.n * size
        left -= d.n
    for e in range(count):
        c = (first + e) // kernel_w if whole else first + e
        place = k * kernel_w + ((first + e) % kernel_w if whole else j)
        for r in range(rows):
            to = <real*>i.p[0] + ((o + r) * i.shape[INS] + c) * inside + place
            to[0] = sum[e * rows + r] if top == 0 else to[0] + sum[e * rows + r]


cdef inline Py_ssize_t rows_at_once(const fb_instruction* i) noexcept nogil:
    """How many rows of dy are added up in one go: chains stay short, and what is read of x in the L2 cache."""
    cdef:
        Py_ssize_t n = i.shape[BATCH], lanes = LANES
        Py_ssize_t steps = (i.shape[MAP_H + 1] * n + lanes - 1) // lanes
        Py_ssize_t row = i.shape[INS] * i.shape[SOURCE_H + 1] * n * sizeof(real) * geometry_of(i)[STRIDE]
    return max(min(LONGEST // steps, 2 * FB_NEAR // row), <Py_ssize_t>1)


cdef inline void convolve_weight(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """dw[o, c, k, j] = the sum over pixels and the batch of dy[o, ...] x[c, ...]; p: dw, dy, x.

    A unit is four outputs and a row of the window. Chains run over pixels, a lane of the batch each.
    """
    cdef:
        Py_ssize_t kernel_h = i.shape[KERNEL_H], kernel_w = i.shape[KERNEL_H + 1], blocks = (i.shape[OUTS] + 3) // 4
        Py_ssize_t unit, first, o, end, j, lists, length, e, left, rows, columns, high
        Py_ssize_t top = 0, bottom, some = rows_at_once(i)
        bint whole = reach_of(i, 1, 0).count == i.shape[MAP_H + 1] == reach_of(i, 1, kernel_w - 1).count
        taps th, tw
    lists = 1 if whole else kernel_w    # of columns that have the same pixels inside the map
    length = i.shape[INS] * (kernel_w if whole else 1)
    while top < i.shape[MAP_H]:
        bottom = min(top + some, i.shape[MAP_H])
        for unit in range(start, stop):
            first = unit // kernel_h // blocks * i.shape[OUTS]
            o = first + unit // kernel_h % blocks * 4
            end = min(o + 4, first + i.shape[OUTS])
            th = reach_of(i, 0, unit % kernel_h)
            for j in range(lists):
                tw = reach_of(i, 1, j)
                e = 0
                while e < length:
                    left = length - e
                    columns = 5 if left == 5 or left == 8 or left > 9 else 3 if left >= 3 else 1
                    rows = 0
                    while o + rows < end:
                        left = end - o - rows
                        high = FB_DOT_ROWS if left >= FB_DOT_ROWS else 2 if left >= 2 else 1
                        dot_columns(i, o + rows, high, unit % kernel_h, j, th, tw, e, columns, whole, top, bottom)
                        rows += high
                    e += columns
        top = bottom


# --- pooling: of each channel for itself, groups are channels

cdef inline real* pixel(const fb_instruction* i, int operand, int map, Py_ssize_t c, Py_ssize_t h,
                        Py_ssize_t w) noexcept nogil:
    return <real*>i.p[operand] + ((c * i.shape[map] + h) * i.shape[map + 1] + w) * i.shape[BATCH]


cdef inline void max_pool(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = the largest element of each window (RELU: of max(0, x)); NaN where one is. A unit is a row of y; p: y, x."""
    cdef:
        Py_ssize_t n = i.shape[BATCH], down, across, unit, column, c, a, b, at
        taps th, tw
        const real* x
        const real* row
        const real* tap
        real* y
        vec most, least = splat(0 if geometry_of(i)[RELU] else -INFINITY)
    for unit in range(start, stop):
        c = unit // i.shape[MAP_H]
        th = taps_of(i, 0, unit % i.shape[MAP_H], False)
        down = th.move * i.shape[SOURCE_H + 1] * n
        for column in range(i.shape[MAP_H + 1]):
            tw = taps_of(i, 1, column, False)
            across = tw.move * n
            y = pixel(i, 0, MAP_H, c, unit % i.shape[MAP_H], column)
            x = pixel(i, 1, SOURCE_H, c, th.start, tw.start)
            at = 0
            while at < n:
                most = splat(-INFINITY)
                row = x + at
                for a in range(th.count):
                    tap = row
                    for b in range(tw.count):
                        most = vmax(most, atleast(load(tap, n - at), least))    # ReLU keeps the sign of a zero
                        tap += across
                    row += down
                store(y + at, most, n - at)
                at += LANES


cdef inline mask is_chosen(vec x, vec y) noexcept nogil:
    """Where x is the window's largest element y, or NaN."""
    return eq(x, y) | ne(x, x)


cdef inline void max_pool_input(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """dx = dy at the first largest element of each window (RELU: that is above 0), else 0.

    A unit is a channel; p: dx, dy, x, y.
    """
    cdef:
        const Py_ssize_t* g = geometry_of(i)
        Py_ssize_t n = i.shape[BATCH], down, across, c, row, column, a, b, at, place, tap
        bint apart = True    # no two windows share an element
        int axis
        taps th, tw
        vec left, most, found, zero = splat(0)
        mask chosen
        real* dx
        const real* x
        const real* dy
        const real* y
    for axis in range(2):
        apart = apart and g[STRIDE + axis] > (i.shape[KERNEL_H + axis] - 1) * g[DILATION + axis]
    for c in range(start, stop):
        if not g[CUTS]:    # else all of dx is written, perhaps over x
            memset(pixel(i, 0, SOURCE_H, c, 0, 0), 0, i.shape[SOURCE_H] * i.shape[SOURCE_H + 1] * n * sizeof(real))
        for row in range(i.shape[MAP_H]):
            th = taps_of(i, 0, row, False)
            down = th.move * i.shape[SOURCE_H + 1] * n
            for column in range(i.shape[MAP_H + 1]):
                tw = taps_of(i, 1, column, False)
                across = tw.move * n
                dx = pixel(i, 0, SOURCE_H, c, th.start, tw.start)
                dy = pixel(i, 1, MAP_H, c, row, column)
                x = pixel(i, 2, SOURCE_H, c, th.start, tw.start)
                y = pixel(i, 3, MAP_H, c, row, column)
                at = 0
                while at < n:
                    left = load(dy + at, n - at)
                    most = load(y + at, n - at)
                    if g[RELU]:
                        left = select(le(most, zero), zero, left)
                    place = at
                    for a in range(th.count):
                        tap = place
                        for b in range(tw.count):
                            chosen = is_chosen(load(x + tap, n - at), most)
                            found = select(chosen, left, zero)
                            if not apart:
                                found = load(dx + tap, n - at) + found
                            store(dx + tap, found, n - at)
                            left = select(chosen, zero, left)
                            tap += across
                        place += down
                    at += LANES


cdef inline void max_pool_pick(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = g at the first largest element of each window of x; y0 are the largest. p: y, g, x, y0."""
    cdef:
        Py_ssize_t n = i.shape[BATCH], unit, column, c, row, a, b, at, place
        taps th, tw
        vec found, wanted, x, y
    for unit in range(start, stop):
        c = unit // i.shape[MAP_H]
        row = unit % i.shape[MAP_H]
        th = taps_of(i, 0, row, False)
        for column in range(i.shape[MAP_H + 1]):
            tw = taps_of(i, 1, column, False)
            at = 0
            while at < n:
                y = load(pixel(i, 3, MAP_H, c, row, column) + at, n - at)
                found = splat(0)
                for a in range(th.count - 1, -1, -1):    # the first of the chosen ones is the last to be taken
                    for b in range(tw.count - 1, -1, -1):
                        place = (a * th.move * i.shape[SOURCE_H + 1] + b * tw.move) * n + at
                        x = load(pixel(i, 2, SOURCE_H, c, th.start, tw.start) + place, n - at)
                        wanted = load(pixel(i, 1, SOURCE_H, c, th.start, tw.start) + place, n - at)
                        found = select(is_chosen(x, y), wanted, found)
                store(pixel(i, 0, MAP_H, c, row, column) + at, found, n - at)
                at += LANES


cdef inline dict convolution_kernels():
    return {"convolve": <size_t>&convolve, "convolve_input": <size_t>&convolve_input,
            "convolve_weight": <size_t>&convolve_weight, "max_pool": <size_t>&max_pool,
            "max_pool_input": <size_t>&max_pool_input, "max_pool_pick": <size_t>&max_pool_pick}

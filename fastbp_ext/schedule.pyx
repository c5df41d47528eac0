"""From a program to the shares of its threads.

Every thread walks the whole program and runs its share of each instruction: the units of one range,
the same in every replay. Where one touches what another wrote, or writes what another touched,
since they last met, they meet before: a barrier. Rows of a layer stay with one thread from product to
product, so that a forward pass needs none, and a layer's backward pass one or two. What is too
small to share is the first thread's.
"""
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from fastbp_ext.abi cimport FB_OPERANDS, fb_instruction

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    MANY = 2048    # touches: then the threads meet, as it takes long to look through more
    POINTED = 8    # bytes of an operand that is passed through as a pointer: it meets whoever writes there

cdef double MEET = 5e-7      # seconds that a barrier takes, with threads that come apart a little
cdef double START = 2e-6     # and that a job does
cdef double LEAST = 1e-5     # a program that takes less stays with the caller


# What a thread touches since the threads met.
cdef struct Touch:
    char* low
    char* high
    int rank
    bint written


cdef struct Touches:
    Touch* of
    Py_ssize_t count
    Py_ssize_t room
    bint lost              # there was no memory for one


cdef inline Py_ssize_t tile_bytes(const fb_instruction* head, const fb_instruction* i, int k) noexcept nogil:
    """The memory that an operand takes that has the values of a tile."""
    cdef Py_ssize_t inner = i.units // i.shape[0]
    return (head.span * i.pace + inner - 1) // inner * i.stride[k][0]


cdef Touch touch_of(const fb_instruction* head, const fb_instruction* i, int k, const Reach* reach,
                    Py_ssize_t start, Py_ssize_t stop, int rank) noexcept nogil:
    """What units start .. stop of an instruction touch of operand k, or a little more."""
    cdef Touch t
    cdef Py_ssize_t inner, step, first, last, d
    t.rank = rank
    t.written = k < i.outputs
    if i.itemsize[k] == 0:
        t.low = i.p[k]
        t.high = t.low + POINTED
    elif i.tile[k]:
        t.low = i.p[k]
        t.high = t.low + (tile_bytes(head, i, k) if rank == 0 else 0)
    elif i.walked == 0:    # it may be anywhere
        t.low = i.p[k] + reach.low
        t.high = i.p[k] + reach.high
    else:
        inner = i.units // i.shape[0]
        first, last = start // inner, (stop - 1) // inner
        step = i.stride[k][0]
        t.low = i.p[k] + min(first * step, last * step)
        t.high = i.p[k] + max(first * step, last * step) + i.itemsize[k]
        for d in range(1, i.ndim):
            step = (i.shape[d] - 1) * i.stride[k][d]
            if step < 0:
                t.low += step
            else:
                t.high += step
    return t


cdef bint meets(const Touches* touches, const Touch* t) noexcept nogil:
    """Whether a thread may touch so only after it has met the others."""
    cdef Py_ssize_t n
    cdef const Touch* other
    for n in range(touches.count):
        other = &touches.of[n]
        if other.rank != t.rank and (other.written or t.written) and other.low < t.high and t.low < other.high:
            return True
    return False


cdef void note(Touches* touches, Touch t) noexcept nogil:
    cdef Touch* grown
    if touches.count == touches.room:
        grown = <Touch*> realloc(touches.of, 2 * (touches.room + 16) * sizeof(Touch))
        if grown == NULL:
            touches.lost = True
            return
        touches.of = grown
        touches.room = 2 * (touches.room + 16)
    touches.of[touches.count] = t
    touches.count += 1


cdef void split(const fb_instruction* head, int threads, bint shared, Py_ssize_t* bounds) noexcept nogil:
    """The bounds of shares of whole grains, as equal as can be; or the first thread has it all."""
    cdef Py_ssize_t grains = (head.units + head.grain - 1) // head.grain
    cdef int t
    bounds[0] = 0
    for t in range(1, threads + 1):
        bounds[t] = min(head.units, grains * t // threads * head.grain) if shared else head.units


cdef bint walk(Touches* touches, const fb_instruction* code, const Reach* reach, const Item* item,
               const Py_ssize_t* bounds, int threads, bint noting) noexcept nogil:
    """Whether the threads must meet before an item with these bounds; or note what they touch in it."""
    cdef const fb_instruction* head = &code[item.first]
    cdef const fb_instruction* i
    cdef Py_ssize_t n
    cdef Touch t
    cdef int k, rank
    for rank in range(threads):
        if bounds[rank] == bounds[rank + 1]:
            continue
        for n in range(item.first, item.first + item.count):
            i = &code[n]
            for k in range(i.operands):
                t = touch_of(head, i, k, &reach[n * FB_OPERANDS + k], bounds[rank] * i.pace,
                             bounds[rank + 1] * i.pace, rank)
                if noting:
                    note(touches, t)
                elif meets(touches, &t):
                    return True
    return False


cdef double longest(const Py_ssize_t* bounds, int threads) noexcept nogil:
    """The largest share, as a part of the whole."""
    cdef Py_ssize_t most = 0
    cdef int t
    for t in range(threads):
        most = max(most, bounds[t + 1] - bounds[t])
    return <double> most / bounds[threads]


cdef Py_ssize_t place_tiles(const fb_instruction* code, const Item* item, Py_ssize_t* places) noexcept nogil:
    """Where in a worker's memory the values of a tile lie: as far apart as in the program's; the bytes are returned."""
    cdef const fb_instruction* i
    cdef char* low = NULL
    cdef char* high = NULL
    cdef Py_ssize_t n
    cdef int k
    for n in range(item.first, item.first + item.count):
        i = &code[n]
        for k in range(i.operands):
            if i.tile[k]:
                low = i.p[k] if low == NULL else min(low, i.p[k])
                high = max(high, i.p[k] + tile_bytes(&code[item.first], i, k))
    for n in range(item.count):
        i = &code[item.first + n]
        for k in range(i.operands):
            places[n * FB_OPERANDS + k] = i.p[k] - low if i.tile[k] else -1
    return high - low


cdef bint has_tiles(const fb_instruction* code, const Item* item) noexcept nogil:
    cdef Py_ssize_t n
    cdef int k
    for n in range(item.first, item.first + item.count):
        for k in range(code[n].operands):
            if code[n].tile[k]:
                return True
    return False


cdef Schedule* new_schedule(Py_ssize_t count, int threads) noexcept nogil:
    """Room for so many items, or NULL."""
    cdef Schedule* s = <Schedule*> calloc(1, sizeof(Schedule))
    if s != NULL:
        s.threads = threads
        s.ran = <Py_ssize_t*> calloc(threads, LINE)
        s.items = <Item*> calloc(count + 1, sizeof(Item))
        s.bounds = <Py_ssize_t*> calloc((count + 1) * (threads + 1), sizeof(Py_ssize_t))
        s.places = <Py_ssize_t*> calloc((count + 1) * FB_OPERANDS, sizeof(Py_ssize_t))
        if s.ran == NULL or s.items == NULL or s.bounds == NULL or s.places == NULL:
            free_schedule(s)
            s = NULL
    return s


cdef double decide(Touches* touches, const fb_instruction* code, const Reach* reach, Item* item, Py_ssize_t* bounds,
                   double seconds, int threads, bint always) noexcept nogil:
    """Set whether an item is shared, and met before, by what takes least: the seconds that it takes now."""
    cdef double shared_takes, alone_takes
    cdef bint shared_meets
    split(&code[item.first], threads, False, bounds)
    item.meets = touches.count > MANY or walk(touches, code, reach, item, bounds, threads, False)
    alone_takes = seconds + MEET * item.meets
    split(&code[item.first], threads, True, bounds)
    shared_meets = touches.count > MANY or walk(touches, code, reach, item, bounds, threads, False)
    shared_takes = seconds * longest(bounds, threads) + MEET * shared_meets
    if bounds[1] < bounds[threads] and (always or shared_takes < alone_takes):
        item.meets = shared_meets
        alone_takes = shared_takes
    else:
        split(&code[item.first], threads, False, bounds)
    if item.meets:
        touches.count = 0
    walk(touches, code, reach, item, bounds, threads, True)
    return alone_takes


cdef Schedule* schedule_of(fb_instruction* code, const Reach* reach, Py_ssize_t count, const double* seconds,
                           int threads, bint always) noexcept nogil:
    cdef Schedule* s = new_schedule(count, threads)
    cdef Touches touches
    cdef Item* item
    cdef Py_ssize_t* bounds
    cdef Py_ssize_t at = 0, n
    cdef double takes = START, alone
    if s == NULL:
        return NULL
    memset(&touches, 0, sizeof(Touches))
    while at < count:
        item = &s.items[s.count]
        bounds = &s.bounds[s.count * (threads + 1)]
        item.first = at
        item.count = max(code[at].group, 1)
        item.copies = -1
        at += item.count
        alone = 0
        for n in range(item.first, at):
            alone += seconds[n]
        s.alone += alone
        takes += decide(&touches, code, reach, item, bounds, alone, threads, always)
        if bounds[1] < bounds[threads] and has_tiles(code, item):
            item.copies = s.copied
            s.copied += item.count
            s.room = max(s.room, place_tiles(code, item, &s.places[item.copies * FB_OPERANDS]))
        s.count += 1
    s.worth = always or s.alone > LEAST and takes < 0.9 * s.alone
    free(touches.of)
    if touches.lost or s.worth and not give_copies(s, code):
        free_schedule(s)
        return NULL
    return s


cdef bint give_copies(Schedule* s, const fb_instruction* code) noexcept nogil:
    """Workers' memory, and their instructions of the items that need some; False where there is none."""
    cdef Py_ssize_t n
    if s.copied == 0:
        return True
    s.room = (s.room + 2 * LINE - 1) & -LINE    # no two workers write to one line
    s.copies = <fb_instruction*> calloc(s.copied * (s.threads - 1), sizeof(fb_instruction))
    s.scratch = <char*> aligned_alloc(LINE, s.room * (s.threads - 1))
    if s.copies == NULL or s.scratch == NULL:
        return False
    for n in range(s.count):
        if s.items[n].copies >= 0:
            copy_item(s, code, &s.items[n])
    return True


cdef void copy_item(Schedule* s, const fb_instruction* code, const Item* item) noexcept nogil:
    """The instructions of an item for each worker; whoever runs them sets the operands that may have moved."""
    cdef fb_instruction* i
    cdef Py_ssize_t n
    cdef int k, rank
    for rank in range(1, s.threads):
        for n in range(item.count):
            i = &s.copies[(rank - 1) * s.copied + item.copies + n]
            i[0] = code[item.first + n]
            for k in range(i.operands):
                if i.tile[k]:
                    i.p[k] = s.scratch + (rank - 1) * s.room + s.places[(item.copies + n) * FB_OPERANDS + k]


cdef void free_schedule(Schedule* s) noexcept nogil:
    if s != NULL:
        free(s.ran)
        free(s.items)
        free(s.bounds)
        free(s.places)
        free(s.copies)
        free(s.scratch)
        free(s)

"""The executor: it runs instructions, and knows no gate."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free, realloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastbp_ext.abi cimport FB_OPERANDS, fb_flush_begin, fb_flush_end, fb_instruction
from fastbp_ext.pool cimport pool_barrier, pool_run, pool_size
from fastbp_ext.schedule cimport LINE, Item, Reach, Schedule, free_schedule, schedule_of
from fastbp_ext.tensor cimport NOWHERE, Memory, Tensor, guards_whole, item_size, memory_of, seen_at

import numpy as np

from fastbp_ext.tensor import DEBUG

cdef bint debug = DEBUG
flush = True    # whether denormals are taken for zero

cdef enum:
    # Below this much work an instruction takes less time than giving up the interpreter's lock.
    RELEASE_WORK = 1 << 15
    # About as much work is in a chunk of an instruction: some 10 us of a cheap one.
    CHUNK_WORK = 1 << 15
    # So many runs by one thread, which are timed, show what is worth a share.
    TRIALS = 3


def set_flush_denormal(bint on):
    """Whether kernels take denormal numbers for zero; the process's own mode is never changed.

    Returns True, as PyTorch does where the machine can.
    """
    global flush
    flush = on
    return True


precision = 0    # of float32 matrix products: programs are recorded for one


def set_precision(int value):
    """The precision of float32 matrix products, a number: 0 is plain float32."""
    global precision
    precision = value


def get_precision():
    """The number that `set_precision` set."""
    return precision


def get_flush_denormal():
    """Whether kernels take denormal numbers for zero."""
    return flush


cdef double SHORTEST_REST = 5e-3, LONGEST_REST = 1    # seconds


cdef int check_ranges(fb_instruction* i, void** operands) except -1:
    """Debug build: an instruction reaches only its operands' own memory."""
    cdef int k, d
    cdef Memory memory
    cdef char* low
    cdef char* high
    cdef Py_ssize_t reach, n = 1
    for d in range(i.ndim):
        n *= i.shape[d]
    for k in range(i.operands):
        if i.itemsize[k] == 0 or n == 0:
            continue
        memory = memory_of(<Tensor> operands[k])
        low = i.p[k]
        high = low + i.itemsize[k]
        for d in range(i.ndim):
            reach = (i.shape[d] - 1) * i.stride[k][d]
            if reach > 0:
                high += reach
            else:
                low += reach
        if low < memory.low or high > memory.high:
            raise SystemError(
                f"fastbp debug build: operand {k} of a kernel reaches from {low - memory.low} to "
                f"{high - memory.low} of {memory.high - memory.low} bytes")
    return 0


cdef int check_guards(fb_instruction* i, void** operands) except -1:
    cdef int k
    for k in range(i.operands):
        if i.itemsize[k] and not guards_whole(<Tensor> operands[k]):
            raise SystemError(f"fastbp debug build: a kernel wrote past the memory of operand {k}")
    return 0


cdef class Executor:
    """Takes instructions. This one runs each at once: gate by gate."""

    cdef int put(self, fb_instruction* i, void** operands) except -1:
        cdef unsigned mode
        if debug:
            check_ranges(i, operands)
        if i.work > RELEASE_WORK:
            with nogil:
                mode = fb_flush_begin(flush)
                i.run(i, 0, i.units)
                fb_flush_end(mode)
        else:
            mode = fb_flush_begin(flush)
            i.run(i, 0, i.units)
            fb_flush_end(mode)
        if debug:
            check_guards(i, operands)
        return 0


cdef Executor now = Executor()


cdef double now_seconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + 1e-9 * t.tv_nsec


cdef double look = 0    # the seconds that a look at the clock takes


cdef void run_tiles(fb_instruction* first, Py_ssize_t start, Py_ssize_t stop, double* spent) noexcept nogil:
    """Units start .. stop of the group that begins with this instruction, or of that instruction alone.

    spent[j], unless it is NULL, becomes the seconds that number j of them took.
    """
    cdef Py_ssize_t j, count = max(first.group, 1), end
    cdef Py_ssize_t span = first.span if first.group else stop - start
    cdef fb_instruction* i
    cdef double begin
    if spent != NULL:
        for j in range(count):
            spent[j] = 0
    while start < stop:
        end = min(start + span, stop)
        for j in range(count):
            i = first + j
            if spent == NULL:
                i.run(i, start * i.pace, end * i.pace)
            else:
                begin = now_seconds()
                i.run(i, start * i.pace, end * i.pace)
                spent[j] += now_seconds() - begin - look
        start = end


# What the threads of a job run: a part of a program.
cdef struct Job:
    fb_instruction* code
    Schedule* schedule
    Py_ssize_t start
    Py_ssize_t stop
    unsigned mode    # the caller's, of floating point


cdef void run_share(void* context, int rank, int threads) noexcept nogil:
    """A thread walks the program, on its share of each instruction."""
    cdef Job* job = <Job*> context
    cdef Schedule* s = job.schedule
    cdef Item* item = s.items
    cdef Py_ssize_t* bounds = s.bounds + rank
    cdef Item* end = s.items + s.count
    cdef unsigned own = fb_flush_begin(False)
    fb_flush_end(job.mode)
    while item < end and item.first < job.start:
        item += 1
        bounds += threads + 1
    while item < end and item.first < job.stop:
        if item.meets:
            pool_barrier(rank)
        if bounds[0] < bounds[1]:
            s.ran[rank * LINE // <Py_ssize_t> sizeof(Py_ssize_t)] += 1
            run_tiles(&job.code[item.first] if rank == 0 or item.copies < 0 else own_copy(s, job.code, item, rank),
                      bounds[0], bounds[1], NULL)
        item += 1
        bounds += threads + 1
    fb_flush_end(own)


cdef fb_instruction* own_copy(Schedule* s, const fb_instruction* code, const Item* item, int rank) noexcept nogil:
    """A worker's instructions of a group; operands may have moved, but for those in its own memory."""
    cdef fb_instruction* copies = &s.copies[(rank - 1) * s.copied + item.copies]
    cdef const fb_instruction* i
    cdef Py_ssize_t n
    cdef int k
    for n in range(item.count):
        i = &code[item.first + n]
        for k in range(i.operands):
            if not i.tile[k]:
                copies[n].p[k] = i.p[k]
    return copies


cdef Reach reach_of(Tensor x) noexcept:
    """The memory that a tensor shows, in bytes from its first element on."""
    cdef Reach reach
    cdef int d
    reach.low, reach.high = 0, item_size(x.kind)
    for d in range(x.rank):
        if x.steps[d] < 0:
            reach.low += (x.dims[d] - 1) * x.steps[d]
        else:
            reach.high += (x.dims[d] - 1) * x.steps[d]
    return reach


cdef class Program(Executor):
    """Instructions to be replayed: data, run by one loop that knows no gate.

    Operands that were recorded have no memory of their own; each belongs to a slot, the memory
    of the recorded tensor that owns it. `place` gives a slot its address, and with it every
    operand in it. What the other operands are views of is kept alive. Stages of Python stand
    beside the instructions: a program that has some stops there and takes the interpreter's lock.
    """

    def __cinit__(self):
        self.slots = {}
        self.operands = []
        self.calls = []
        self.kept = []

    def __dealloc__(self):
        free(self.code)
        free(self.patches)
        free(self.first)
        free(self.addresses)
        free(self.reach)
        free(self.seconds)
        free_schedule(self.schedule)

    def __len__(self):
        return self.count + len(self.calls)

    cdef int put(self, fb_instruction* i, void** operands) except -1:
        cdef int k
        cdef Tensor root
        cdef void* grown
        if i.units <= 0:
            return 0
        if debug:
            check_ranges(i, operands)
        if self.count == self.room:
            grown = realloc(self.code, (2 * self.room + 16) * sizeof(fb_instruction))
            if grown == NULL:
                raise MemoryError("no memory for a program")
            self.code = <fb_instruction*> grown
            grown = realloc(self.reach, (2 * self.room + 16) * FB_OPERANDS * sizeof(Reach))
            if grown == NULL:
                raise MemoryError("no memory for a program")
            self.reach = <Reach*> grown
            self.room = 2 * self.room + 16
        self.code[self.count] = i[0]
        self.code[self.count].group = 0
        self.code[self.count].pace = 1
        self.code[self.count].chunk = chunk_of(i, i.grain)
        for k in range(i.operands):
            root = (<Tensor> operands[k]).root()
            self.reach[self.count * FB_OPERANDS + k] = reach_of(<Tensor> operands[k])
            self.code[self.count].tile[k] = self.tiled is not None and id(root) in self.tiled
            if root.abstract:
                self.operands.append((self.slot(root), self.count, k, i.p[k] - <char*> <size_t> NOWHERE))
            else:
                self.kept.append(root)
        self.count += 1
        return 0

    def begin_group(self, tiled, span, grain):
        """The instructions that follow run together, tile by tile.

        They are elementwise and of one size; the first may make that size by a product in strips of
        rows. tiled: ids of the recorded tensors whose values live for a tile only, in the memory of
        one; span: units of the first in a tile; grain: those that one thread has to run, or 0: its own.
        """
        self.tiled = tiled
        self.group_start = self.count
        self.span = span
        self.group_grain = grain

    def end_group(self):
        """The group ends here."""
        cdef Py_ssize_t k
        cdef fb_instruction* first = &self.code[self.group_start]
        self.tiled = None
        if self.count - self.group_start > 1:
            first.group = <int> (self.count - self.group_start)
            first.span = self.span
            first.grain = self.group_grain or first.grain
            first.chunk = chunk_of(first, max(first.grain, <Py_ssize_t> first.span))
            for k in range(self.group_start, self.count):
                self.code[k].pace = <int> (self.code[k].units // first.units)

    cdef slot(self, Tensor root):
        return self.slots.setdefault(id(root), len(self.slots))

    def call(self, function, tuple outputs, tuple inputs):
        """A stage of Python at this place: the arrays that function(*input arrays) returns become the outputs."""
        for x in (*outputs, *inputs):
            if (<Tensor> x).root().abstract:
                self.slot((<Tensor> x).root())
        self.calls.append((self.count, function, outputs, inputs))

    def seal(self):
        """No instruction follows: group the operands by slot."""
        cdef Py_ssize_t n, work = 0
        cdef int slots = len(self.slots)
        self.operands.sort()
        self.patches = <Patch*> calloc(len(self.operands) + 1, sizeof(Patch))
        self.first = <Py_ssize_t*> calloc(slots + 1, sizeof(Py_ssize_t))
        self.addresses = <char**> calloc(slots + 1, sizeof(char*))
        self.seconds = <double*> calloc(self.count + 1, sizeof(double))
        if self.patches == NULL or self.first == NULL or self.addresses == NULL or self.seconds == NULL:
            raise MemoryError("no memory for a program")
        for n, (slot, instruction, operand, offset) in enumerate(self.operands):
            self.patches[n].operand = &self.code[<Py_ssize_t> instruction].p[<int> operand]
            self.patches[n].offset = offset
            self.first[<int> slot + 1] += 1
        for n in range(slots):
            self.first[n + 1] += self.first[n]
        self.operands.clear()
        for n in range(self.count):
            work += self.code[n].work
        self.long_run = work > RELEASE_WORK

    def slot_of(self, Tensor root):
        """The slot of a recorded tensor's memory, or -1 where no instruction touches it."""
        return self.slots.get(id(root), -1)

    cdef void place(self, int slot, char* address) noexcept nogil:
        """The operands of a slot lie at `address`."""
        cdef Py_ssize_t n
        if slot >= 0:
            self.addresses[slot] = address
            for n in range(self.first[slot], self.first[slot + 1]):
                self.patches[n].operand[0] = address + self.patches[n].offset

    cdef void execute(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        cdef Py_ssize_t k = start
        cdef fb_instruction* i = &self.code[start]
        while k < stop:
            if i.group:
                run_tiles(i, 0, i.units, NULL)
                k += i.group
                i += i.group
                continue
            if i.plain:
                i.inner(i.p, i.units, i.c)
            else:
                i.run(i, 0, i.units)
            k += 1
            i += 1

    # --- by several threads

    cdef void run(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        """Instructions start .. stop, by several threads where that takes less time."""
        if pool_size() == 1 or not self.long_run:
            self.execute(start, stop)
        elif self.trials < TRIALS:
            self.try_out(start, stop)
        elif not self.divide(pool_size(), False):
            self.execute(start, stop)
        elif start == 0 and stop == self.count:
            self.run_watched()
        elif not self.run_together(start, stop):
            self.execute(start, stop)

    cdef void run_watched(self) noexcept nogil:
        """A whole run by all threads, unless that took longer of late than a run by one.

        A thread whose processor has other work keeps the others waiting at each barrier. Then one
        runs the program for a while, and for twice as long the next time, unless it went well for long.
        """
        cdef double began = now_seconds(), took
        cdef bint well
        if began >= self.resumes and self.run_together(0, self.count):
            took = now_seconds() - began
            self.together += (took - self.together) / 8
            if self.together > self.alone:
                well = began - self.resumes > 8 * self.rest
                self.rest = SHORTEST_REST if well else min(2 * self.rest, LONGEST_REST)
                self.resumes = began + took + self.rest
                self.together = self.alone / 2    # for the next attempt
        else:
            self.execute(0, self.count)
            self.alone += (now_seconds() - began - self.alone) / 8

    cdef void try_out(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        """One run by this thread, which keeps the least time of each instruction."""
        cdef Py_ssize_t k
        cdef double* spent = <double*> calloc(self.count + 1, sizeof(double))
        if spent == NULL:
            self.execute(start, stop)
            return
        self.execute_timed(start, stop, spent)
        for k in range(start, stop):
            self.seconds[k] = spent[k] if self.trials == 0 else min(self.seconds[k], spent[k])
        free(spent)
        self.trials += stop == self.count

    cdef bint divide(self, int threads, bint always) noexcept nogil:
        """Shares for so many threads; False where one does as well, but for `always`."""
        cdef Schedule* before = self.schedule
        if before == NULL or before.threads != threads or always:
            self.schedule = NULL    # a fork may come in between: the child finds nothing half done
            free_schedule(before)
            self.schedule = schedule_of(self.code, self.reach, self.count, self.seconds, threads, always)
            if self.schedule != NULL:
                self.alone, self.together = self.schedule.alone, 0
                self.rest = self.resumes = 0
        return self.schedule != NULL and self.schedule.worth

    cdef bint run_together(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        """False, with nothing run, where the pool is not to be had."""
        cdef Job job
        job.code = self.code
        job.schedule = self.schedule
        job.start = start
        job.stop = stop
        job.mode = fb_flush_begin(False)    # as it is
        return pool_run(run_share, &job, self.schedule.threads)

    def run_in_threads(self, int threads):
        """One run by so many threads, each instruction shared where it can be: how many each ran.

        For tests; None where the pool was busy.
        """
        cdef bint ran = False
        cdef unsigned mode
        with nogil:
            mode = fb_flush_begin(flush)
            if self.divide(threads, True):
                ran = self.run_together(0, self.count)
            fb_flush_end(mode)
        found = self.ran_by
        free_schedule(self.schedule)
        self.schedule = NULL
        return found if ran else None

    @property
    def threads(self):
        """How many threads a run takes."""
        return self.schedule.threads if self.schedule != NULL and self.schedule.worth else 1

    @property
    def shares(self):
        """For each instruction or group its first, whether threads meet before it, where their shares end."""
        cdef Schedule* s = self.schedule
        cdef Py_ssize_t n
        cdef int t
        return [] if self.threads == 1 else [
            (s.items[n].first, bool(s.items[n].meets),
             [s.bounds[n * (s.threads + 1) + t + 1] for t in range(s.threads)]) for n in range(s.count)]

    @property
    def ran_by(self):
        """How many instructions and groups each thread has run a share of, since the shares were made."""
        cdef int t
        return [] if self.schedule == NULL else [
            self.schedule.ran[t * LINE // <Py_ssize_t> sizeof(Py_ssize_t)] for t in range(self.schedule.threads)]

    cdef void run_short(self) noexcept nogil:
        """All instructions in their order, of a program without stages of Python."""
        cdef unsigned mode = fb_flush_begin(flush)
        self.execute(0, self.count)
        fb_flush_end(mode)

    cdef int run_once(self) except -1:
        """All stages in their order, without the interpreter's lock but for stages of Python."""
        cdef unsigned mode
        cdef Py_ssize_t start = 0, stop
        cdef Py_ssize_t call = 0, calls = len(self.calls)
        while True:
            stop = <Py_ssize_t> self.calls[call][0] if call < calls else self.count
            with nogil:
                mode = fb_flush_begin(flush)
                self.run(start, stop)
                fb_flush_end(mode)
            if call == calls:
                return 0
            _, function, outputs, inputs = self.calls[call]
            self.run_call(function, outputs, inputs)
            start = stop
            call += 1

    cdef run_call(self, function, tuple outputs, tuple inputs):
        # Copies: what the user's function keeps or changes is its own.
        made = function(*[self.operand_now(x).numpy().copy() for x in inputs])
        for y, value in zip(outputs, made, strict=True):
            np.copyto(self.operand_now(y).numpy(), value, casting="same_kind")

    cdef Tensor operand_now(self, Tensor x):
        """An operand where it lies now; it is not kept alive."""
        cdef Tensor root = x.root()
        return seen_at(x, self.addresses[<int> self.slots[id(root)]]) if root.abstract else x

    def run_in_chunks(self, order):
        """One run, each instruction chunk by chunk, from the last to the first where `order` is -1.

        The bits are those of any other order: chunks may go to any thread.
        """
        cdef Py_ssize_t k = 0, at, chunks, n
        cdef fb_instruction* i
        cdef unsigned mode = fb_flush_begin(flush)
        while k < self.count:
            i = &self.code[k]
            chunks = (i.units + i.chunk - 1) // i.chunk
            for n in range(chunks):
                at = (chunks - 1 - n if order < 0 else n) * i.chunk
                run_tiles(i, at, min(at + i.chunk, i.units), NULL)
            k += max(i.group, 1)
        fb_flush_end(mode)

    cdef list measure(self, double seconds):
        """Runs for about so long, eight at least: the seconds of each instruction, of each stage of Python, of a run.

        They are means: a clock may tick more slowly than an instruction runs. An eighth of the time goes
        into finding how short a run is; then those that take a tenth longer were disturbed, and do not count.
        """
        global look
        cdef Py_ssize_t size = self.count + len(self.calls), k, _n, n = 0, timed = 0, plain = 0
        cdef double* spent = <double*> calloc(2 * size + 1, sizeof(double))
        cdef double* total = spent + size
        cdef double began = now_seconds(), run, whole, shortest = 1e9, shortest_whole = 1e9, total_whole = 0
        if spent == NULL:
            raise MemoryError("no memory for a profile")
        try:
            for _n in range(1000):
                now_seconds()
            look = (now_seconds() - began) / 1001
            while n < 8 or now_seconds() < began + seconds:
                run = now_seconds()
                self.run_timed(spent)
                run = now_seconds() - run
                whole = now_seconds()
                self.run_once()
                whole = now_seconds() - whole - look
                if n >= 4 and now_seconds() > began + seconds / 8:
                    if run <= 1.1 * shortest or timed == 0:
                        timed += 1
                        for k in range(size):
                            total[k] += spent[k]
                    if whole <= 1.1 * shortest_whole or plain == 0:
                        plain += 1
                        total_whole += whole
                shortest, shortest_whole = min(shortest, run), min(shortest_whole, whole)
                n += 1
                PyErr_CheckSignals()
            return [max(total[k] / max(timed, 1), 0.0) for k in range(size)] + [total_whole / max(plain, 1)]
        finally:
            free(spent)

    cdef int run_timed(self, double* spent) except -1:
        """As `run_once`; spent[k] becomes the seconds of instruction k, then those of stages of Python."""
        cdef unsigned mode
        cdef double begin
        cdef Py_ssize_t call, calls = len(self.calls), at = 0, stop
        for call in range(calls + 1):
            stop = <Py_ssize_t> self.calls[call][0] if call < calls else self.count
            with nogil:
                mode = fb_flush_begin(flush)
                self.execute_timed(at, stop, spent)
                fb_flush_end(mode)
            at = stop
            if call < calls:
                _, function, outputs, inputs = self.calls[call]
                begin = now_seconds()
                self.run_call(function, outputs, inputs)
                spent[self.count + call] = now_seconds() - begin
        return 0

    cdef void execute_timed(self, Py_ssize_t start, Py_ssize_t stop, double* spent) noexcept nogil:
        """As `execute`; spent[k] is the time that instruction k took."""
        cdef Py_ssize_t k = start
        while k < stop:
            run_tiles(&self.code[k], 0, self.code[k].units, &spent[k])
            k += max(self.code[k].group, 1)

    @property
    def size(self):
        """(instructions, stages of Python) so far."""
        return self.count, len(self.calls)

    @property
    def chunks(self):
        """For each instruction the number of its chunks."""
        return [(self.code[k].units + self.code[k].chunk - 1) // self.code[k].chunk for k in range(self.count)]


cdef Py_ssize_t chunk_of(fb_instruction* i, Py_ssize_t grain) noexcept:
    """How many units go to a thread at once: whole grains, about CHUNK_WORK of work."""
    cdef Py_ssize_t grains = (i.units + grain - 1) // grain
    cdef Py_ssize_t chunks = i.work // CHUNK_WORK + 1
    return (grains + chunks - 1) // chunks * grain

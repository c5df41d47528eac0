"""The executor: it runs instructions, and knows no gate."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, malloc, realloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastbp_ext.abi cimport fb_flush_begin, fb_flush_end, fb_instruction
from fastbp_ext.tensor cimport (FLOAT64, NOWHERE, Memory, Tensor, grad_enabled, guards_whole, memory_of, scalar,
                                wrap_array)

from fastbp_ext.tensor import DEBUG

cdef bint debug = DEBUG
cdef bint flush = True

# Below this much work an instruction takes less time than giving up the interpreter's lock.
cdef enum:
    RELEASE_WORK = 1 << 15


def set_flush_denormal(bint on):
    """Whether kernels take denormal numbers for zero; the process's own mode is never changed.

    Returns True, as PyTorch does where the machine can.
    """
    global flush
    flush = on
    return True


def get_flush_denormal():
    """Whether kernels take denormal numbers for zero."""
    return flush


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
        cdef bint flushing = flush    # another thread may change the global while this one runs
        if debug:
            check_ranges(i, operands)
        if i.work > RELEASE_WORK:
            with nogil:
                mode = fb_flush_begin(flushing)
                i.run(i, 0, i.units)
                fb_flush_end(flushing, mode)
        else:
            mode = fb_flush_begin(flushing)
            i.run(i, 0, i.units)
            fb_flush_end(flushing, mode)
        if debug:
            check_guards(i, operands)
        return 0


cdef Executor now = Executor()


cdef double now_seconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + 1e-9 * t.tv_nsec


cdef class Program(Executor):
    """Instructions to be replayed: data, run by one loop that knows no gate.

    Operands that were recorded have no memory of their own; each belongs to a slot, the memory
    of the recorded tensor that owns it. `bind` gives a slot its address, and with it every
    operand in it. What the other operands are views of is kept alive.
    """

    def __cinit__(self):
        self.slots = {}
        self.kept = []

    def __dealloc__(self):
        free(self.code)
        free(self.patches)

    def __len__(self):
        return self.count

    cdef int put(self, fb_instruction* i, void** operands) except -1:
        cdef int k
        cdef Tensor root
        if i.units <= 0:
            return 0
        if debug:
            check_ranges(i, operands)
        if self.count == self.room:
            self.room = 2 * self.room + 16
            self.code = <fb_instruction*> realloc(self.code, self.room * sizeof(fb_instruction))
        if self.patch_count + i.operands > self.patch_room:
            self.patch_room = 2 * self.patch_room + 64
            self.patches = <Patch*> realloc(self.patches, self.patch_room * sizeof(Patch))
        if self.code == NULL or self.patches == NULL:
            raise MemoryError("no memory for a program")
        self.code[self.count] = i[0]
        for k in range(i.operands):
            root = (<Tensor> operands[k]).root()
            if root.abstract:
                self.patches[self.patch_count].instruction = self.count
                self.patches[self.patch_count].operand = k
                self.patches[self.patch_count].slot = self.slots.setdefault(id(root), len(self.slots))
                self.patches[self.patch_count].offset = i.p[k] - <char*> <size_t> NOWHERE
                self.patch_count += 1
            else:
                self.kept.append(root)
        self.count += 1
        return 0

    def seal(self):
        """No instruction follows: group the operands by slot."""
        cdef list order = sorted(range(self.patch_count), key=lambda n: self.patches[n].slot)
        cdef Patch* sorted_ = <Patch*> malloc((self.patch_count + 1) * sizeof(Patch))
        cdef Py_ssize_t n, work = 0
        cdef int slot = 0
        if sorted_ == NULL:
            raise MemoryError("no memory for a program")
        for n in range(self.patch_count):
            sorted_[n] = self.patches[order[n]]
        free(self.patches)
        self.patches = sorted_
        self.first = [0] * (len(self.slots) + 1)
        for n in range(self.patch_count):
            while slot < self.patches[n].slot:
                slot += 1
                self.first[slot] = n
        while slot < len(self.slots):
            slot += 1
            self.first[slot] = self.patch_count
        for n in range(self.count):
            work += self.code[n].work
        self.long_run = work > RELEASE_WORK    # shorter ones take less time than the lock

    def slot_of(self, Tensor root):
        """The slot of a recorded tensor's memory, or -1 where no instruction touches it."""
        return self.slots.get(id(root), -1)

    cpdef bind(self, int slot, Tensor memory):
        """The operands of a slot lie in `memory`, from its first element on."""
        self.place(slot, memory.data)

    def bind_part(self, int slot, Tensor arena, Py_ssize_t offset):
        """The operands of a slot lie in an arena of bytes."""
        self.place(slot, arena.data + offset)

    cdef place(self, int slot, char* address):
        cdef Py_ssize_t n
        if slot >= 0:
            for n in range(<Py_ssize_t> self.first[slot], <Py_ssize_t> self.first[slot + 1]):
                self.code[self.patches[n].instruction].p[self.patches[n].operand] = address + self.patches[n].offset

    def run(self, Py_ssize_t times=1):
        """All instructions in their order, `times` over, without the interpreter's lock where it is long.

        Ctrl-C is looked for between the runs; returned is how many were done.
        """
        cdef Py_ssize_t done = 0
        cdef double begin
        while done < times:
            if not self.long_run and times - done == 1:
                self.execute()
                done += 1
            else:
                begin = now_seconds()
                with nogil:
                    while done < times and now_seconds() - begin < 0.05:
                        self.execute()
                        done += 1
                PyErr_CheckSignals()
        return done

    cdef void execute(self) noexcept nogil:
        cdef int k
        cdef bint flushing = flush    # another thread may change the global while this one runs
        cdef unsigned mode = fb_flush_begin(flushing)
        for k in range(self.count):
            self.code[k].run(&self.code[k], 0, self.code[k].units)
        fb_flush_end(flushing, mode)


def match(tuple args, tuple wanted):
    """The arguments as tensors, where each is as `wanted` says, else None.

    wanted: for each argument (Tensor or array, shape, dtype, requires_grad), or None for a
    Python number. Arrays that kernels can't read as they are match nothing.
    """
    cdef list given
    cdef Tensor t
    if len(args) != len(wanted):
        return None
    given = []
    for arg, spec in zip(args, wanted):
        if spec is None:
            if type(arg) is not float:
                return None
            given.append(scalar(arg, FLOAT64))
            continue
        if type(arg) is not spec[0]:
            return None
        if isinstance(arg, Tensor):
            t = <Tensor> arg
            if not t.contiguous or t.needs_grad != spec[3] or t.abstract:
                return None
        else:
            if arg.dtype is not spec[2] or not arg.flags.c_contiguous or not arg.flags.aligned:
                return None
            t = wrap_array(arg)
        if t.shape != spec[1] or t.dtype is not spec[2]:
            return None
        given.append(t)
    return given


def grad_mode():
    """Whether gates of this thread go on the tape."""
    return grad_enabled()

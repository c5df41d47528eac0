/* What the executor and the kernels agree on: one instruction of a program.

   An instruction is data. `run` walks the units of work [start, stop) of one
   iteration space, `shape`, in which every operand has a byte stride for each
   dimension (0 where the operand does not vary). Outputs come first.  The
   fields that a contiguous elementwise instruction reads come first too. */
#ifndef FASTBP_ABI_H
#define FASTBP_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <Python.h> /* Py_ssize_t */

enum { FB_OPERANDS = 10, FB_DIMS = 12, FB_CONSTANTS = 6, FB_TILE = 512, FB_FUSED = 1024 };

typedef struct fb_instruction fb_instruction;

/* The inner loop of an elementwise instruction: n contiguous elements. */
typedef void (*fb_inner)(char *const *p, Py_ssize_t n, const double *c);
typedef void (*fb_run)(const fb_instruction *, Py_ssize_t start, Py_ssize_t stop);

struct fb_instruction {
    fb_run run;
    fb_inner inner;
    Py_ssize_t units;         /* pieces of work that may go to any thread, */
    Py_ssize_t grain, chunk;  /* in chunks of so many units, a multiple of the kernel's grain */
    Py_ssize_t work;          /* elements that all of them touch, about */
    char *p[FB_OPERANDS];
    double c[FB_CONSTANTS];
    int32_t plain; /* contiguous operands: `inner` on all elements is all that `run` does */
    int32_t group; /* so many instructions, from this one on, run tile by tile: 0 or 2 and more */
    int32_t span;  /* the first of a group: its units in one tile */
    int32_t pace;  /* units for one unit of the first of the group */
    int32_t operands, outputs, ndim;
    int32_t kept;             /* reductions: the dimensions before the reduced ones */
    int32_t walked;           /* the units count the first so many dimensions; 0: one may touch any part of an operand */
    uint8_t itemsize[FB_OPERANDS]; /* 0: passed through as a pointer */
    uint8_t tile[FB_OPERANDS];     /* 1: the memory of one tile, where `start` always lies */
    Py_ssize_t shape[FB_DIMS];
    Py_ssize_t stride[FB_OPERANDS][FB_DIMS];
};

/* Kernels run with denormals flushed to zero; the caller's mode comes back, its flags of what happened too. */
#if defined(__SSE2__)
#include <xmmintrin.h>
static inline unsigned fb_flush_begin(int flush) {
    unsigned mode = _mm_getcsr();
    if (flush) _mm_setcsr(mode | 0x8040u);
    return mode;
}
static inline void fb_flush_end(unsigned mode) {
    _mm_setcsr(mode);
}
#elif defined(__aarch64__)
static inline unsigned fb_flush_begin(int flush) {
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    if (flush) __asm__ volatile("msr fpcr, %0" ::"r"(mode | (1ul << 24)));
    return (unsigned)mode;
}
static inline void fb_flush_end(unsigned mode) {
    __asm__ volatile("msr fpcr, %0" ::"r"((unsigned long)mode));
}
#else
static inline unsigned fb_flush_begin(int flush) { (void)flush; return 0; }
static inline void fb_flush_end(unsigned mode) { (void)mode; }
#endif

#endif

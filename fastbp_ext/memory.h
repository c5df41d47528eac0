/* Memory of tensors and programs: 64-byte lines; in the debug build, poisoned
   guards on both sides that fb_guards_whole looks at. */
#ifndef FASTBP_MEMORY_H
#define FASTBP_MEMORY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef FASTBP_DEBUG
enum { FB_DEBUG = 1, FB_GUARD = 64, FB_POISON = 0xA5 };
#else
enum { FB_DEBUG = 0, FB_GUARD = 0, FB_POISON = 0 };
#endif

/* Large blocks that were released, kept for the next that need as much: fresh pages cost more
   to fault in than most kernels take to fill them. Used with the interpreter's lock held. */
enum { FB_LARGE = 1 << 20, FB_SPARE_BLOCKS = 8, FB_SPARE_BYTES = 256 << 20 };
static struct { char *data; size_t bytes; } fb_spare[FB_SPARE_BLOCKS];
static size_t fb_spare_bytes;

static inline char *fb_take_spare(size_t bytes) {
    for (int k = 0; k < FB_SPARE_BLOCKS; k++)
        if (fb_spare[k].data != NULL && fb_spare[k].bytes == bytes) {
            char *data = fb_spare[k].data;
            fb_spare[k].data = NULL;
            fb_spare_bytes -= bytes;
            return data;
        }
    return NULL;
}

/* The block is kept, in the place of others where there is no room: the last released stay. */
static inline void fb_keep_spare(char *data, size_t bytes) {
    static int next;
    if (bytes > FB_SPARE_BYTES) {
        free(data);
        return;
    }
    for (int k = 0; k < FB_SPARE_BLOCKS; k++, next = (next + 1) % FB_SPARE_BLOCKS) {
        if (fb_spare[next].data != NULL && fb_spare_bytes + bytes > FB_SPARE_BYTES) {
            free(fb_spare[next].data);
            fb_spare_bytes -= fb_spare[next].bytes;
            fb_spare[next].data = NULL;
        }
        if (fb_spare[next].data == NULL && fb_spare_bytes + bytes <= FB_SPARE_BYTES) break;
    }
    if (fb_spare[next].data != NULL) {
        free(fb_spare[next].data);
        fb_spare_bytes -= fb_spare[next].bytes;
    }
    fb_spare[next].data = data;
    fb_spare[next].bytes = bytes;
    fb_spare_bytes += bytes;
    next = (next + 1) % FB_SPARE_BLOCKS;
}

/* Blocks that were released last: most programs ask for the same few sizes again and again, and
   aligned blocks take the C library long. Each size has a place with room for some, which it may
   share with other sizes. Used with the interpreter's lock held. */
enum { FB_MIDDLE = 1 << 18, FB_RECENT = 4 };
typedef struct { char *data; size_t lines; } fb_block;
static fb_block fb_recent[16][FB_RECENT];
static inline fb_block *fb_place(size_t lines) { return fb_recent[(uint32_t)lines * 0x9E3779B1u >> 28]; }

static inline char *fb_take_recent(size_t lines) {
    fb_block *place = fb_place(lines);
    for (int k = 0; k < FB_RECENT; k++)
        if (place[k].lines == lines && place[k].data != NULL) {
            char *data = place[k].data;
            place[k].data = NULL;
            return data;
        }
    return NULL;
}

static inline void fb_keep_recent(char *data, size_t lines) {
    static unsigned next;
    fb_block *place = fb_place(lines);
    int k = 0;
    while (k < FB_RECENT && place[k].data != NULL) k++;
    if (k == FB_RECENT) {
        k = next++ % FB_RECENT;
        free(place[k].data);
    }
    place[k].data = data;
    place[k].lines = lines;
}

/* A block of lines; a large one on huge pages, where Linux gives them: address caches know few small ones, and
   in a virtual machine finding the place of another takes long. The last pages, less than a huge one, stay small. */
enum { FB_HUGE = 2 << 20 };
static inline int fb_new_block(void **block, size_t bytes) {
#ifdef MADV_HUGEPAGE
    if (bytes >= FB_HUGE) {
        if (posix_memalign(block, FB_HUGE, bytes)) return 1;
        madvise(*block, bytes & -(size_t)FB_HUGE, MADV_HUGEPAGE);
        return 0;
    }
#endif
    return posix_memalign(block, 64, bytes);
}

/* NULL where there is no memory. In the debug build the content is poison too:
   a float read before it is written is a NaN-like -2.8e-16, the same each time. */
static inline char *fb_allocate(size_t bytes) {
    void *block;
    char *spare = !FB_DEBUG && bytes >= FB_LARGE ? fb_take_spare(bytes) : NULL;
    if (spare != NULL) return spare;
    if (bytes > SIZE_MAX - 4096) return NULL;
    size_t lines = (bytes + 63) / 64;
    spare = !FB_DEBUG && bytes <= FB_MIDDLE ? fb_take_recent(lines) : NULL;
    if (spare != NULL) return spare;
    size_t whole = 64 * lines + 2 * FB_GUARD + 64 * FB_DEBUG;
    if (fb_new_block(&block, whole ? whole : 64)) return NULL;
    if (FB_DEBUG) {
        memset(block, FB_POISON, whole);
        memcpy(block, &bytes, sizeof bytes);
    }
    return (char *)block + 64 * FB_DEBUG;
}

static inline void fb_release(char *data, size_t bytes) {
    size_t lines = (bytes + 63) / 64;
    if (!FB_DEBUG && bytes >= FB_LARGE) {
        fb_keep_spare(data, bytes);
    } else if (!FB_DEBUG && bytes <= FB_MIDDLE) {
        fb_keep_recent(data, lines);
    } else {
        free(data - 64 * FB_DEBUG);
    }
}

static inline int fb_guards_whole(const char *data) {
    if (!FB_DEBUG) return 1;
    size_t bytes;
    memcpy(&bytes, data - 64, sizeof bytes);
    for (const unsigned char *p = (const unsigned char *)data - 64 + sizeof bytes;
         p < (const unsigned char *)data; p++)
        if (*p != FB_POISON) return 0;
    for (size_t i = 0; i < FB_GUARD; i++)
        if ((unsigned char)data[bytes + i] != FB_POISON) return 0;
    return 1;
}

/* What gates give is checked for NaN and infinity: with `differentiating`, for in both no function is replayed. */
enum { FB_CHECKING = 1 << 30 };

/* What each thread has of its own. */
typedef struct {
    int no_grad;
    int as_python;       /* the gate that is called is an operator of numbers */
    int differentiating; /* inside how many functions that grad differentiates; FB_CHECKING */
    void *group;
    void *recorder;
} fb_thread;
static _Thread_local fb_thread fb_this_thread;

#endif

/* Threads that share work by claiming it. A call of the engine is a round, and a round is a
   sequence of phases: each thread runs the same job, claims pieces of the current phase until none
   is left, waits until all pieces are done, and goes on to the next phase. A phase does not wait
   for threads, only for pieces, so a thread that the system has put aside holds nobody up unless it
   sleeps within a piece. Rounds are numbered, and a claim names its round: a thread that comes late
   to a finished round finds nothing to claim in it. */

#pragma once
#define _GNU_SOURCE
#include "layout.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SPINS 4000 /* how often a waiting thread looks at a flag before it lets others run */

typedef struct {
    /* round << 32 | next piece. A cache line of its own keeps threads of other phases from taking
       it away. */
    _Alignas(64) atomic_ullong claim;
    atomic_int done;
} Phase;

/* A token's activations as integers: value = (256 * high + low) * step, or low * step with one
   plane. MIXED: one step per group, and the sums of both planes together in low_sums. VQ: int16
   from `low` on, and one step per block. */
typedef struct {
    int8_t *low, *high;            /* (T, padded) */
    int32_t *low_sums, *high_sums; /* (T, groups) */
    float *steps;                  /* (T); MIXED, VQ: (T, groups) */
    size_t size_bytes;
} Input;

/* What a set of integers was computed from. Matrices that read the same activations in the same
   form (queries, keys and values) share them. */
typedef struct {
    uint64_t stamp;
    const float *column_scales;
    int32_t group, top, columns, vector;
} Key;

/* Memory of one thread; the last worker's is shared by all threads, for calls of several tokens. */
typedef struct {
    float *memory;  /* (tokens, widest) activations before a product */
    float *rounded; /* the same, rounded as the model does, for matrices that multiply floats */
    float *scores;  /* one head's scores with all tokens so far */
    float *key_now; /* one head's key at the token that is decoded */
    void *vq;       /* VQ: see vq_bytes */
    Input input;
    size_t memory_bytes, rounded_bytes, scores_bytes, key_now_bytes, vq_bytes;
    uint64_t stamp; /* the number of the source that `memory` holds */
    Key key, rounded_key;
} Worker;

struct Pool;
struct Team;
typedef int (*Job)(struct Team *team, const void *data);
/* Most bytes of a job's data. Each thread copies it, because the caller's may be gone when a late
   thread reads it. */
#define TASK_BYTES 1024

typedef struct Pool {
    int threads;
    Worker *workers; /* one per thread, then the one that all share */
    pthread_t *handles;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_uint round;
    atomic_int stop;
    Job job;
    _Alignas(64) char data[TASK_BYTES];
    /* Late threads may look at phases that were outgrown, so those are kept until the pool ends.
       Their number doubles each time: 32 are enough. */
    Phase *phases, *retired[32];
    int phases_made, retirements, inside;
    float *streams; /* activations that all threads share */
    size_t streams_bytes;
} Pool;

/* One thread's way through a round. */
typedef struct Team {
    Pool *pool;
    Worker *own, *shared;
    uint32_t round;
    int phase;
    uint64_t stamps;      /* the last number given to a source; every thread counts alike */
    Key key, rounded_key; /* what the shared integers were computed from */
} Team;

typedef void (*Piece)(Team *team, const void *data, int first, int last);

INLINE void wait_briefly(int *spins) {
    if (++*spins < SPINS) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    } else {
        sched_yield();
    }
}

/* Do `items` items with the other threads, `size` at a time. Returns 1 when all are done, whoever
   did them; 0 when the round is over. */
static int together(Team *team, int items, int size, Piece piece, const void *data) {
    Phase *phase = team->pool->phases + team->phase++;
    uint32_t pieces = (uint32_t)((items + size - 1) / size);
    if (team->pool->threads == 1) {
        piece(team, data, 0, items);
        return 1;
    }
    for (;;) {
        unsigned long long seen = atomic_load_explicit(&phase->claim, memory_order_acquire);
        do {
            if ((uint32_t)(seen >> 32) != team->round) return 0;
            if ((uint32_t)seen >= pieces) break;
        } while (!atomic_compare_exchange_weak(&phase->claim, &seen, seen + 1));
        if ((uint32_t)seen >= pieces) break;
        int first = (int)(uint32_t)seen * size, last = first + size < items ? first + size : items;
        piece(team, data, first, last);
        atomic_fetch_add_explicit(&phase->done, 1, memory_order_acq_rel);
    }
    for (int spins = 0; (uint32_t)atomic_load_explicit(&phase->done, memory_order_acquire) < pieces;
         wait_briefly(&spins))
        if ((uint32_t)(atomic_load_explicit(&phase->claim, memory_order_acquire) >> 32)
            != team->round)
            return 0;
    return 1;
}

/* Return the items per piece: four pieces per thread even out slow threads; at most `most` items.
   */
INLINE int piece_of(const Team *team, int items, int most) {
    int size = items / (team->pool->threads * 4);
    return size < 1 ? 1 : size > most ? most : size;
}

INLINE Team team_of(Pool *pool, int thread, uint32_t round) {
    return (Team){.pool = pool,
                  .own = pool->workers + thread,
                  .shared = pool->workers + pool->threads,
                  .round = round,
                  .stamps = (uint64_t)round << 32};
}

typedef struct {
    Pool *pool;
    int thread;
} Start;

static void *work(void *argument) {
    Start start = *(Start *)argument;
    Pool *pool = start.pool;
    uint32_t seen = 0;
    free(argument);
    for (;;) {
        for (int spins = 0;
             atomic_load_explicit(&pool->round, memory_order_acquire) == seen && spins < SPINS;)
            wait_briefly(&spins);
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
        seen = atomic_load(&pool->round);
        Job job = pool->job;
        _Alignas(64) char data[TASK_BYTES];
        memcpy(data, pool->data, TASK_BYTES);
        pool->inside++;
        pthread_mutex_unlock(&pool->mutex);
        if (atomic_load(&pool->stop)) return NULL;
        Team team = team_of(pool, start.thread, seen);
        job(&team, data);
        pthread_mutex_lock(&pool->mutex);
        pool->inside--;
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Provide at least `phases` phases. Returns 0 when there is no memory. */
static int reserve_phases(Pool *pool, int phases) {
    void *memory = NULL;
    if (phases <= pool->phases_made) return 1;
    phases = phases > 2 * pool->phases_made ? phases : 2 * pool->phases_made;
    if (posix_memalign(&memory, 64, sizeof(Phase) * (size_t)phases)) return 0;
    if (pool->phases) pool->retired[pool->retirements++] = pool->phases;
    memset(memory, 0, sizeof(Phase) * (size_t)phases);
    pool->phases = memory;
    pool->phases_made = phases;
    return 1;
}

/* Run a job of at most `phases` phases on all threads. A late thread may still read what the job's
   data points to after this returns, though not within pieces: it must live until the pool is
   settled. Returns 0 when there is no memory. */
static int run(Pool *pool, Job job, const void *data, size_t size_bytes, int phases) {
    uint32_t round = atomic_load(&pool->round) + 1;
    pthread_mutex_lock(&pool->mutex);
    int ready = reserve_phases(pool, phases);
    if (ready && pool->threads > 1) {
        for (int i = 0; i < phases; i++) {
            atomic_store_explicit(&pool->phases[i].done, 0, memory_order_relaxed);
            atomic_store_explicit(&pool->phases[i].claim, (unsigned long long)round << 32,
                                  memory_order_release);
        }
        pool->job = job;
        memcpy(pool->data, data, size_bytes);
        pthread_cond_broadcast(&pool->wake);
    }
    if (ready) atomic_store(&pool->round, round);
    pthread_mutex_unlock(&pool->mutex);
    if (!ready) return 0;
    Team team = team_of(pool, 0, round);
    job(&team, data);
    return 1;
}

/* Wait until no thread holds data of an earlier round. */
void forge_settle(Pool *pool) {
    for (int inside = 1, spins = 0; inside; wait_briefly(&spins)) {
        pthread_mutex_lock(&pool->mutex);
        inside = pool->inside;
        pthread_mutex_unlock(&pool->mutex);
    }
}

void forge_pool_free(Pool *pool) {
    if (!pool) return;
    if (pool->threads > 1) {
        pthread_mutex_lock(&pool->mutex);
        atomic_store(&pool->stop, 1);
        atomic_fetch_add(&pool->round, 1);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->handles[i], NULL);
    for (int i = 0; pool->workers && i <= pool->threads; i++) {
        free(pool->workers[i].memory);
        free(pool->workers[i].rounded);
        free(pool->workers[i].scores);
        free(pool->workers[i].key_now);
        free(pool->workers[i].vq);
        free(pool->workers[i].input.low);
    }
    for (int i = 0; i < pool->retirements; i++) free(pool->retired[i]);
    free(pool->phases);
    free(pool->workers);
    free(pool->handles);
    free(pool->streams);
    free(pool);
}

Pool *forge_pool_new(int threads) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, sizeof(Pool))) return NULL;
    Pool *pool = memset(memory, 0, sizeof(Pool));
    pool->threads = 1;
    pool->workers = calloc((size_t)threads + 1, sizeof *pool->workers);
    pool->handles = calloc((size_t)threads, sizeof *pool->handles);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    if (!pool->workers || !pool->handles) {
        forge_pool_free(pool);
        return NULL;
    }
    for (int i = 1; i < threads; i++) {
        Start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (Start){pool, i};
        if (pthread_create(&pool->handles[i], NULL, work, start)) {
            free(start);
            break;
        }
        pool->threads = i + 1;
    }
    return pool;
}

int forge_pool_threads(const Pool *pool) { return pool->threads; }

/* Grow a buffer to `wanted` bytes, aligned to 64; its content is not kept. Returns 0 when there is
   no memory. */
static int reserve(void **buffer, size_t *size, size_t wanted) {
    if (*size >= wanted && *buffer) return 1;
    free(*buffer);
    *buffer = NULL;
    *size = 0;
    if (posix_memalign(buffer, 64, (wanted + 63) / 64 * 64)) {
        *buffer = NULL;
        return 0;
    }
    *size = wanted;
    return 1;
}

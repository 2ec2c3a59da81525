/* Packed inference on the CPU: products with coded matrices, and the whole forward pass of a
   Llama-family model.

   Weights stay as codes (product.h draws how they lie). Four neighbouring columns of a row share
   a 32-bit lane, so one instruction multiplies four columns of 16 rows with four broadcast
   activations, and no sum crosses lanes. The activations of a token are rounded to integers:
   int8 where the model rounds them itself (the product is then exact), else 16 bits in two
   planes of int8, high and low, which keeps the product within 1e-4 of the float one.
   Vector-quantised matrices (kind VQ, vq.h) look up products with a codebook's entries, or the
   entries themselves. Water-filled ones (kind MIXED, mixed.h) have one scale per row and per
   column, and blocks of 0 to 8 bits per code.

   One source, three builds: AVX-512 (VNNI, VBMI), AVX2, and plain C. A row, token or head is
   computed by one thread, so the result does not depend on the number of threads. Shapes: T tokens
   of a call, d hidden width. */

#include "pool.h"
#include "product.h"

/* ---- one matrix ------------------------------------------------------------------------------ */

/* Where activations come from. READY: `weight` holds them. NORM: the normalised stream. GATED: SiLU
   of the gate times up. The last two are computed from the streams: for several tokens in a phase
   of their own, for one token by each thread for itself, which is cheaper than a phase. */
typedef struct {
    uint64_t stamp; /* must come first, see Stamped */
    enum { READY, NORM, GATED } kind;
    const struct Call *call;
    const float *weight;
    const int32_t *picked; /* NORM: which tokens; NULL for all, in order */
} Source;

typedef struct {
    Matrix matrix;
    const float *x;
    int tokens;
    float *out;
} Single;

static int single_job(Team *team, const void *data) {
    const Single *s = data;
    for (int t = 0; t < s->tokens; t += CHUNK) {
        Source source = {.stamp = ++team->stamps, .kind = READY};
        Use use = {.matrix = &s->matrix,
                   .x = s->x + (size_t)t * s->matrix.columns,
                   .source = &source,
                   .tokens = s->tokens - t < CHUNK ? s->tokens - t : CHUNK,
                   .out = s->out + (size_t)t * s->matrix.rows,
                   .stride = s->matrix.rows};
        if (!product(team, &use)) return 0;
    }
    return 1;
}

/* Fill out (tokens, rows) with x (tokens, columns) times the matrix. Returns 0, or -1 when there is
   no memory. */
int forge_matmul(Pool *pool, const Matrix *m, const float *x, int tokens, float *out) {
    if (!reserve_for(pool, m, tokens < CHUNK ? tokens : CHUNK)) return -1;
    Single single = {*m, x, tokens, out};
    int chunks = (tokens + CHUNK - 1) / CHUNK;
    return run(pool, single_job, &single, sizeof single, chunks * PHASES) ? 0 : -1;
}

/* Fill out (count, columns) with the rows whose numbers `rows` (count) holds. */
void forge_rows(const Matrix *m, const int32_t *rows, int count, float *out) {
    for (int i = 0; i < count; i++) take_row(m, rows[i], out + (size_t)i * m->columns);
}

/* ---- a Llama-family model -------------------------------------------------------------------- */

typedef struct Call {
    const Model *model;
    int tokens, wanted;
    const int32_t *ids, *positions, *sequences, *capacities, *wanted_tokens;
    float **keys, **values; /* a sequence's cache: (layers, kv_heads, capacity, head_size) */
    float *logits;          /* (wanted, vocabulary) */
    float *stream, *q, *k, *v, *mixed, *gate, *up, *turns; /* (T, ...), shared by all threads */
} Call;

typedef struct {
    const Call *call;
    int layer;
} Place;

static void rms_norm(const float *x, const float *weight, int width, float epsilon, float *out) {
    f32x16 squares = {0};
    float total = 0;
    int c = 0;
    for (; c + 16 <= width; c += 16) squares += load16(x + c) * load16(x + c);
    for (; c < width; c++) total += x[c] * x[c];
    float factor = 1.0f / sqrtf((total + sum16(squares)) / (float)width + epsilon);
    for (c = 0; c < width; c++) out[c] = x[c] * factor * weight[c];
}

/* Rotate one head by its position (RoPE). turn: cosines (half), then sines (half). */
static void rotate(float *head, const float *turn, int half) {
    for (int i = 0; i < half; i++) {
        float left = head[i], right = head[i + half];
        head[i] = left * turn[i] - right * turn[half + i];
        head[i + half] = right * turn[i] + left * turn[half + i];
    }
}

static size_t cache_place(const Model *m, int layer, int head, int capacity) {
    return ((size_t)layer * m->kv_heads + head) * capacity * m->head_size;
}

/* Rotate queries and keys, and store keys and values in the caches. Items are (token, head): the
   query heads of a token, then its key heads. */
static void place_piece(Team *team, const void *data, int first, int last) {
    const Call *call = ((const Place *)data)->call;
    const Model *m = call->model;
    int index = ((const Place *)data)->layer, heads = m->heads + m->kv_heads, size = m->head_size;
    const Layer *layer = m->layer + index;
    (void)team;
    for (int item = first; item < last; item++) {
        int t = item / heads, head = item % heads, sequence = call->sequences[t],
            capacity = call->capacities[sequence];
        const float *turn = call->turns + (size_t)t * size;
        if (head < m->heads) {
            float *q = call->q + ((size_t)t * m->heads + head) * size;
            if (layer->q_norm) rms_norm(q, layer->q_norm, size, m->epsilon, q);
            rotate(q, turn, size / 2);
            continue;
        }
        head -= m->heads;
        float *k = call->k + ((size_t)t * m->kv_heads + head) * size;
        if (layer->k_norm) rms_norm(k, layer->k_norm, size, m->epsilon, k);
        rotate(k, turn, size / 2);
        size_t place = cache_place(m, index, head, capacity) + (size_t)call->positions[t] * size;
        memcpy(call->keys[sequence] + place, k, 4 * (size_t)size);
        memcpy(call->values[sequence] + place, call->v + ((size_t)t * m->kv_heads + head) * size,
               4 * (size_t)size);
    }
}

/* Attend to `count` cached keys and, where last_key is not NULL, to one more that is not in the
   cache yet. */
static void attend(const float *q, const float *keys, const float *values, int count,
                   const float *last_key, const float *last_value, int size, float *scores,
                   float *out) {
    float factor = 1.0f / sqrtf((float)size), top = -INFINITY, total = 0;
    int all = count + (last_key != NULL);
    for (int i = 0; i < all; i++) {
        scores[i] = factor * dot_floats(q, i < count ? keys + (size_t)i * size : last_key, size);
        top = scores[i] > top ? scores[i] : top;
    }
    for (int i = 0; i < all; i++) scores[i] = exponential(scores[i] - top);
    for (int i = 0; i < all; i++) total += scores[i];
    for (int i = 0; i < size; i++) out[i] = 0;
    for (int i = 0; i < all; i++) {
        float weight = scores[i] / total;
        const float *value = i < count ? values + (size_t)i * size : last_value;
        for (int c = 0; c < size; c++) out[c] += weight * value[c];
    }
}

/* Items are (head, token). Heads vary slowest, so that neighbouring items read the same cached
   keys. */
static void attention_piece(Team *team, const void *data, int first, int last) {
    const Call *call = ((const Place *)data)->call;
    const Model *m = call->model;
    int index = ((const Place *)data)->layer, size = m->head_size;
    for (int item = first; item < last; item++) {
        int head = item / call->tokens, t = item % call->tokens, sequence = call->sequences[t];
        size_t place =
            cache_place(m, index, head * m->kv_heads / m->heads, call->capacities[sequence]);
        size_t mine = ((size_t)t * m->heads + head) * size;
        attend(call->q + mine, call->keys[sequence] + place, call->values[sequence] + place,
               call->positions[t] + 1, NULL, NULL, size, team->own->scores, call->mixed + mine);
    }
}

/* Rotate, store and attend in one phase, for one token. Query heads of a group share a key: each
   rotates a copy of its own, and the first of them stores the key in the cache, at a place that the
   others do not read in this phase. */
static void one_token_piece(Team *team, const void *data, int first, int last) {
    const Call *call = ((const Place *)data)->call;
    const Model *m = call->model;
    int index = ((const Place *)data)->layer, size = m->head_size, group = m->heads / m->kv_heads;
    int sequence = call->sequences[0], position = call->positions[0];
    const Layer *layer = m->layer + index;
    for (int head = first; head < last; head++) {
        int shared = head / group;
        size_t cache = cache_place(m, index, shared, call->capacities[sequence]);
        float *keys = call->keys[sequence] + cache, *values = call->values[sequence] + cache,
              *key = team->own->key_now;
        float *q = call->q + (size_t)head * size;
        const float *value = call->v + (size_t)shared * size;
        memcpy(key, call->k + (size_t)shared * size, 4 * (size_t)size);
        if (layer->q_norm) rms_norm(q, layer->q_norm, size, m->epsilon, q);
        if (layer->k_norm) rms_norm(key, layer->k_norm, size, m->epsilon, key);
        rotate(q, call->turns, size / 2);
        rotate(key, call->turns, size / 2);
        if (head % group == 0) {
            memcpy(keys + (size_t)position * size, key, 4 * (size_t)size);
            memcpy(values + (size_t)position * size, value, 4 * (size_t)size);
        }
        attend(q, keys, values, position, key, value, size, team->own->scores,
               call->mixed + (size_t)head * size);
    }
}

/* Compute token t of a source: out (width). */
static void make_source(const Source *s, int t, float *out) {
    const Call *call = s->call;
    const Model *m = call->model;
    if (s->kind == NORM) {
        const float *x = call->stream + (size_t)(s->picked ? s->picked[t] : t) * m->hidden;
        rms_norm(x, s->weight, m->hidden, m->epsilon, out);
        return;
    }
    const float *gate = call->gate + (size_t)t * m->inner, *up = call->up + (size_t)t * m->inner;
    for (int c = 0; c < m->inner; c++) out[c] = gate[c] / (1.0f + exponential(-gate[c])) * up[c];
}

static const float *own_source(Team *team, const void *source) {
    const Source *s = source;
    if (team->own->stamp != s->stamp) {
        make_source(s, 0, team->own->memory);
        team->own->stamp = s->stamp;
    }
    return team->own->memory;
}

static void source_piece(Team *team, const void *data, int first, int last) {
    const Source *s = data;
    int width = s->kind == NORM ? s->call->model->hidden : s->call->model->inner;
    for (int t = first; t < last; t++) make_source(s, t, team->shared->memory + (size_t)t * width);
}

#define MOST_OUTS 3 /* most matrices that multiply one source: queries, keys and values */

/* One token times several coded matrices in one phase instead of three: the tiles of all of them
   are numbered consecutively. ends[i]: the number after the last tile of matrix i. */
typedef struct {
    Use uses[MOST_OUTS];
    int ends[MOST_OUTS], count;
} Fan;

static void fan_piece(Team *team, const void *data, int first, int last) {
    const Fan *fan = data;
    for (int i = 0, begin = 0; i < fan->count; begin = fan->ends[i++]) {
        int from = first > begin ? first : begin, to = last < fan->ends[i] ? last : fan->ends[i];
        if (from < to) codes_piece(team, fan->uses + i, from - begin, to - begin);
    }
}

/* Multiply a source by up to MOST_OUTS matrices. */
static int products(Team *team, Source *source, int tokens, const Matrix *matrices, int count,
                    float *const *outs, int add_to) {
    const float *x = NULL;
    Fan fan = {.count = count};
    int all_coded = 1;
    source->stamp = ++team->stamps;
    if (source->kind == READY) {
        x = source->weight;
    } else if (tokens > 1) {
        if (!together(team, tokens, 1, source_piece, source)) return 0;
        x = team->shared->memory;
    }
    for (int i = 0; i < count; i++) {
        fan.uses[i] = (Use){.matrix = matrices + i,
                            .x = x,
                            .source = source,
                            .tokens = tokens,
                            .add_to = add_to,
                            .out = outs[i],
                            .stride = matrices[i].rows};
        fan.ends[i] = (i ? fan.ends[i - 1] : 0) + tiles_of(matrices + i);
        all_coded = all_coded && is_coded(matrices + i);
    }
    if (tokens == 1 && all_coded) {
        int tiles = fan.ends[count - 1];
        return together(team, tiles, tiles_in_piece(team, fan.uses, tiles), fan_piece, &fan);
    }
    for (int i = 0; i < count; i++)
        if (!product(team, fan.uses + i)) return 0;
    return 1;
}

/* Attend: from the queries, keys and values of the call to `mixed`. */
static int attention(Team *team, const Place *place) {
    const Call *call = place->call;
    const Model *m = call->model;
    int tokens = call->tokens, heads = m->heads + m->kv_heads;
    if (tokens == 1) return together(team, m->heads, 1, one_token_piece, place);
    return together(team, tokens * heads, piece_of(team, tokens * heads, 64), place_piece, place)
           && together(team, tokens * m->heads, piece_of(team, tokens * m->heads, 8),
                       attention_piece, place);
}

static int layer_pass(Team *team, const Call *call, int index) {
    const Model *m = call->model;
    const Layer *layer = m->layer + index;
    int tokens = call->tokens;
    Place place = {call, index};
    Source before = {.kind = NORM, .call = call, .weight = layer->norm_before};
    Source mixed = {.kind = READY, .call = call, .weight = call->mixed};
    Source after = {.kind = NORM, .call = call, .weight = layer->norm_after};
    Source gated = {.kind = GATED, .call = call};
    return products(team, &before, tokens, &layer->q, 3,
                    (float *const[]){call->q, call->k, call->v}, 0)
           && attention(team, &place)
           && products(team, &mixed, tokens, &layer->o, 1, &call->stream, 1)
           && products(team, &after, tokens, &layer->gate, 2,
                       (float *const[]){call->gate, call->up}, 0)
           && products(team, &gated, tokens, &layer->down, 1, &call->stream, 1);
}

static void begin_piece(Team *team, const void *data, int first, int last) {
    const Call *call = data;
    const Model *m = call->model;
    int half = m->head_size / 2;
    (void)team;
    for (int t = first; t < last; t++) {
        float *turn = call->turns + (size_t)t * m->head_size;
        take_row(&m->embedding, call->ids[t], call->stream + (size_t)t * m->hidden);
        for (int i = 0; i < half; i++) {
            float angle = (float)call->positions[t] * m->frequencies[i];
            turn[i] = cosf(angle);
            turn[half + i] = sinf(angle);
        }
    }
}

static int forward_job(Team *team, const void *data) {
    const Call *call = data;
    const Model *m = call->model;
    if (!together(team, call->tokens, 1, begin_piece, call)) return 0;
    for (int index = 0; index < m->layers; index++)
        if (!layer_pass(team, call, index)) return 0;
    Source last = {
        .kind = NORM, .call = call, .weight = m->final_norm, .picked = call->wanted_tokens};
    return !call->wanted || products(team, &last, call->wanted, &m->head, 1, &call->logits, 0);
}

/* Reserve what a call of `tokens` tokens needs, and point the call into it. Returns 0 when there is
   no memory. */
static int reserve_call(Pool *pool, Call *call, int longest) {
    const Model *m = call->model;
    size_t tokens = call->tokens, size = m->head_size, floats = 0,
           widest = m->hidden > m->inner ? m->hidden : m->inner;
    const size_t widths[8] = {
        m->hidden,       m->heads * size, m->kv_heads * size, m->kv_heads * size,
        m->heads * size, m->inner,        m->inner,           size};
    float **places[8] = {&call->stream, &call->q,    &call->k,  &call->v,
                         &call->mixed,  &call->gate, &call->up, &call->turns};
    for (int i = 0; i < 8; i++) floats += (tokens * widths[i] + 15) / 16 * 16;
    if (!reserve((void **)&pool->streams, &pool->streams_bytes, 4 * floats)) return 0;
    float *next = pool->streams;
    for (int i = 0; i < 8; i++) {
        *places[i] = next;
        next += (tokens * widths[i] + 15) / 16 * 16;
    }
    for (int i = 0; i <= pool->threads; i++) {
        Worker *w = pool->workers + i;
        size_t own = i < pool->threads ? 1 : tokens;
        if (!reserve((void **)&w->memory, &w->memory_bytes, 4 * own * widest)) return 0;
        if (!reserve((void **)&w->scores, &w->scores_bytes,
                     4 * (size_t)((longest + 255) / 256 * 256)))
            return 0;
        if (!reserve((void **)&w->key_now, &w->key_now_bytes, 4 * size)) return 0;
    }
    return 1;
}

static int reserve_model(Pool *pool, const Model *m, int tokens) {
    Matrix widest = {.kind = CODES};
    for (int i = 0; i <= m->layers; i++) {
        const Matrix *matrices = i < m->layers ? &m->layer[i].q : &m->head;
        for (int k = 0; k < (i < m->layers ? 7 : 1); k++) {
            const Matrix *one = matrices + k;
            int has_more = one->kind == VQ || (one->kind != CODES && one->activation_top > 0);
            if (has_more && !reserve_for(pool, one, tokens)) return 0;
            if (is_coded(one) && one->padded > widest.padded) widest.padded = one->padded;
            if (is_coded(one) && one->groups > widest.groups) widest.groups = one->groups;
        }
    }
    return !widest.padded || reserve_for(pool, &widest, tokens);
}

/* Run `tokens` (at most CHUNK) tokens through the model, and fill logits (wanted, vocabulary) for
   the tokens whose numbers `wanted_tokens` holds. Tokens of one sequence stand in order of their
   positions. The model's layers must live until the pool is settled. Returns 0, -1 when there is no
   memory, -2 for a wrong argument. */
int forge_forward(Pool *pool, const Model *model, int tokens, const int32_t *ids,
                  const int32_t *positions, const int32_t *sequences, float **keys, float **values,
                  const int32_t *capacities, const int32_t *wanted_tokens, int wanted,
                  float *logits) {
    int longest = 0;
    if (tokens < 1 || tokens > CHUNK || wanted > tokens) return -2;
    for (int t = 0; t < tokens; t++) {
        if (ids[t] < 0 || ids[t] >= model->vocabulary || positions[t] < 0
            || positions[t] >= capacities[sequences[t]])
            return -2;
        longest = positions[t] + 1 > longest ? positions[t] + 1 : longest;
    }
    Call call = {.model = model,
                 .tokens = tokens,
                 .wanted = wanted,
                 .ids = ids,
                 .positions = positions,
                 .sequences = sequences,
                 .capacities = capacities,
                 .wanted_tokens = wanted_tokens,
                 .keys = keys,
                 .values = values,
                 .logits = logits};
    if (!reserve_call(pool, &call, longest) || !reserve_model(pool, model, tokens)) return -1;
    int phases = 2 + PHASES + model->layers * (7 * PHASES + 5);
    return run(pool, forward_job, &call, sizeof call, phases) ? 0 : -1;
}

_Static_assert(sizeof(Call) <= TASK_BYTES && sizeof(Single) <= TASK_BYTES,
               "a job's data must fit into a task");

/* Memory that will be read soon, asked for line by line while the multipliers are busy: what limits a base product
 * of many rows is arithmetic, what limits adapters of one row each is memory, and so they overlap. */
#ifndef STOA_QUEUE_H
#define STOA_QUEUE_H

#define ROW_BLOCK 32      /* rows of one pass over a few strips */
#define STRIPS_TOGETHER 4 /* those few */
#define MAX_RANGES (ROW_BLOCK * (MAX_PARTS + 1))

typedef struct {
    const uint8_t *at, *end; /* of the range being asked for */
    int64_t i, n;
    struct { const uint8_t *at, *end; } range[MAX_RANGES];
} Queue;

static inline void queue_start(Queue *q) {
    q->at = q->end = NULL;
    q->i = q->n = 0;
}

static inline void queue_add(Queue *q, const uint8_t *at, int64_t bytes) {
    q->range[q->n].at = at;
    q->range[q->n++].end = at + bytes;
}

static inline void queue_step(Queue *q) {
    if (q->at < q->end) {
        PREFETCH_L2(q->at);
        q->at += 64;
    } else if (q->i < q->n) {
        q->at = q->range[q->i].at;
        q->end = q->range[q->i++].end;
    }
}

#endif

/* One replica: which rows its steps have, how long they take, when that changes. */
#include "fleet.h"

/* -- queues: lists through request.next */

/* In its place by order: at the end, but for those that have had tokens. 1: it is the first now. */
static int line_up(fleet *f, queue *q, int32_t id) {
    request *all = f->requests;
    int32_t behind = q->tail;
    if (behind != NONE && all[behind].order > all[id].order) {
        behind = NONE;
        for (int32_t at = q->head; all[at].order < all[id].order; at = all[at].next) behind = at;
    }
    all[id].next = behind == NONE ? q->head : all[behind].next;
    if (behind == NONE) q->head = id;
    else all[behind].next = id;
    if (all[id].next == NONE) q->tail = id;
    return behind == NONE;
}

static int32_t pop_front(fleet *f, queue *q) {
    int32_t id = q->head;
    q->head = f->requests[id].next;
    if (q->head == NONE) q->tail = NONE;
    return id;
}

/* -- the heap of sequences that decode, by mark */

static void sink(fleet *f, replica *r, int32_t i) {
    const request *q = f->requests;
    int32_t id = r->running[i];
    int64_t mark = q[id].mark;
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= r->n) break;
        if (child + 1 < r->n && q[r->running[child + 1]].mark < q[r->running[child]].mark) child++;
        if (q[r->running[child]].mark >= mark) break;
        r->running[i] = r->running[child];
        i = child;
    }
    r->running[i] = id;
}

static void rise(fleet *f, replica *r, int32_t i) {
    const request *q = f->requests;
    int32_t id = r->running[i];
    while (i > 0) {
        int32_t parent = (i - 1) / 2;
        if (q[r->running[parent]].mark <= q[id].mark) break;
        r->running[i] = r->running[parent];
        i = parent;
    }
    r->running[i] = id;
}

static void start_decoding(fleet *f, replica *r, int32_t id) {
    request *q = &f->requests[id];
    q->mark = r->steps + q->output - q->emitted;
    r->ctx += q->prompt + q->emitted;
    r->running[r->n] = id;
    rise(f, r, r->n++);
}

/* Takes the sequence at place i out; its `emitted` is right again. */
static int32_t stop_decoding(fleet *f, replica *r, int32_t i) {
    int32_t id = r->running[i];
    request *q = &f->requests[id];
    q->emitted = q->output - (int32_t)(q->mark - r->steps);
    r->ctx -= q->prompt + q->emitted;
    r->running[i] = r->running[--r->n];
    if (i < r->n) {
        rise(f, r, i);
        sink(f, r, i);
    }
    return id;
}

/* -- time of a segment */

static double after(const replica *r, int64_t steps) {
    double k = (double)steps;
    return r->seg_start_s + (k * r->seg_a_s + r->seg_b_s * (0.5 * k * (k - 1)));
}

/* Steps that end at or before now_s. */
static int64_t steps_by(const replica *r, double now_s) {
    double x = now_s - r->seg_start_s, a = r->seg_a_s, b = r->seg_b_s;
    int64_t k;
    if (!r->seg_steps || x < 0) return 0;
    if (now_s >= r->event_s) return r->seg_steps;
    if (b > 0) {
        double half = a - 0.5 * b;
        k = (int64_t)((sqrt(half * half + 2 * b * x) - half) / b);
    } else {
        k = (int64_t)(x / a);
    }
    if (k > r->seg_steps) k = r->seg_steps;
    while (k < r->seg_steps && after(r, k + 1) <= now_s) k++;
    while (k > 0 && after(r, k) > now_s) k--;
    return k;
}

static void count_tokens(fleet *f, replica *r, int64_t steps) {
    int64_t tokens = (steps - r->seg_counted) * r->n;
    f->bin_output += tokens;
    f->output_tokens += tokens;
    r->seg_counted = steps;
}

void replica_count(fleet *f, replica *r, double now_s) {
    if (r->seg_steps && r->n) count_tokens(f, r, steps_by(r, now_s));
}

/* -- the next segment */

/* The latest of the running gives way until the next step's context fits. */
static void make_room(fleet *f, replica *r, double now_s) {
    while (r->ctx + r->reserved > f->kv_tokens) {
        int32_t latest = NONE;
        for (int32_t i = 0; i < r->n; i++)
            if (latest == NONE || f->requests[r->running[i]].order > f->requests[r->running[latest]].order) latest = i;
        int32_t id = r->partial;
        if (id != NONE && (latest == NONE || f->requests[id].order > f->requests[r->running[latest]].order)) {
            r->partial = NONE;
            r->reserved = 0;
        } else {
            id = stop_decoding(f, r, latest);
        }
        f->requests[id].done = 0;
        f->requests[id].last_s = now_s;
        line_up(f, &r->waiting, id);
        f->preempted++;
    }
}

static void add_rows(fleet *f, replica *r, int32_t id, int32_t *room) {
    request *q = &f->requests[id];
    int32_t todo = q->prompt + q->emitted - q->done;
    q->rows = todo < *room ? todo : *room;
    *room -= q->rows;
    r->batch[r->in_batch++] = id;
}

/* Until the first token of a prompt that is admitted now, if others fill its steps up. */
static double first_in_s(const fleet *f, const replica *r, int32_t prompt) {
    int32_t room = f->max_batch_tokens - r->n;
    double step_s = f->fixed_s + f->prompt_row_s * room + f->decode_row_s * r->n + f->context_token_s * (double)r->ctx;
    return (1 + (prompt - 1) / room) * step_s;
}

/* The queue whose first comes next: those in time before the late ones, but for the share of who waits for too long. */
static queue *next_in_line(fleet *f, replica *r, double now_s) {
    int overdue = r->late.head != NONE && now_s > f->requests[r->late.head].arrival_s + LATE_MOST_S;
    if (overdue && r->passed >= LATE_SHARE - 1) return &r->late;
    while (f->by_deadline && r->waiting.head != NONE) {
        const request *q = &f->requests[r->waiting.head];
        if (q->emitted || now_s + first_in_s(f, r, q->prompt) <= q->arrival_s + f->ttft_s) break;
        line_up(f, &r->late, pop_front(f, &r->waiting));
    }
    return r->waiting.head != NONE ? &r->waiting : &r->late;
}

static int32_t plan_prompts(fleet *f, replica *r, double now_s) {
    int32_t room = f->max_batch_tokens - r->n, all = room;
    int64_t context = r->ctx + r->reserved;
    r->in_batch = 0;
    if (r->partial != NONE) {
        if (room > 0) add_rows(f, r, r->partial, &room);
        else return 0;
    }
    while (room > 0 && r->n + r->in_batch < f->max_num_seqs) {
        queue *line = next_in_line(f, r, now_s);
        if (line->head == NONE) break;
        const request *q = &f->requests[line->head];
        if (context + q->prompt + q->emitted + 1 > f->kv_tokens) break;
        context += q->prompt + q->emitted;
        r->passed = line == &r->late ? 0 : r->passed + 1;
        add_rows(f, r, pop_front(f, line), &room);
    }
    return all - room;
}

static void begin(fleet *f, int32_t slot, double now_s) {
    replica *r = &f->replicas[slot];
    make_room(f, r, now_s);
    int32_t rows = plan_prompts(f, r, now_s);
    r->seg_start_s = now_s;
    r->seg_counted = 0;
    r->seg_a_s = f->fixed_s + f->prompt_row_s * rows + f->decode_row_s * r->n + f->context_token_s * (double)r->ctx;
    r->seg_b_s = f->context_token_s * r->n;
    if (rows) {
        r->seg_steps = 1;
    } else if (r->n) {
        int64_t steps = f->requests[r->running[0]].mark - r->steps;
        int64_t fit = 1 + (f->kv_tokens - r->ctx - r->reserved) / r->n;
        r->seg_steps = steps < fit ? steps : fit;
        int wait = r->waiting.head != NONE || r->late.head != NONE;
        if (f->by_deadline && wait && r->n < f->max_num_seqs && r->n < f->max_batch_tokens) r->seg_steps = 1;
    } else {
        r->seg_steps = 0;
    }
    fleet_schedule(f, slot, r->seg_steps ? after(r, r->seg_steps) : INFINITY);
}

/* -- what happened in a segment */

static void finish_prompts(fleet *f, replica *r, double now_s) {
    for (int32_t i = 0; i < r->in_batch; i++) {
        int32_t id = r->batch[i];
        request *q = &f->requests[id];
        q->done += q->rows;
        q->rows = 0;
        if (q->done < q->prompt + q->emitted) {
            r->partial = id;
            r->reserved = q->prompt + q->emitted;
            continue;
        }
        if (id == r->partial) {
            r->partial = NONE;
            r->reserved = 0;
        }
        fleet_token(f, id, now_s);
        q->emitted++;
        if (q->emitted >= q->output) fleet_end(f, id, now_s);
        else start_decoding(f, r, id);
    }
    r->in_batch = 0;
}

static void advance(fleet *f, replica *r, int64_t steps) {
    count_tokens(f, r, steps);
    r->steps += steps;
    r->ctx += steps * r->n;
}

void replica_event(fleet *f, int32_t slot) {
    replica *r = &f->replicas[slot];
    double now_s = r->event_s;
    if (r->seg_steps) {
        advance(f, r, r->seg_steps);
        while (r->n && f->requests[r->running[0]].mark == r->steps) {
            int32_t id = stop_decoding(f, r, 0);
            fleet_end(f, id, now_s);
        }
        finish_prompts(f, r, now_s);
    }
    begin(f, slot, now_s);
}

/* A step that begins later may take the newcomer: the segment ends with the step under way. */
static void cut_short(fleet *f, int32_t slot, double now_s) {
    replica *r = &f->replicas[slot];
    int64_t steps = steps_by(r, now_s);
    if (!steps || after(r, steps) < now_s) steps++;
    if (steps < r->seg_steps) {
        r->seg_steps = steps;
        fleet_schedule(f, slot, after(r, steps));
    }
}

void replica_submit(fleet *f, int32_t slot, int32_t id, double now_s) {
    replica *r = &f->replicas[slot];
    request *q = &f->requests[id];
    q->order = ++f->order - (q->emitted ? ORDER_RESUMED : 0);
    q->done = 0;
    int first_in_line = line_up(f, &r->waiting, id);
    if (!r->seg_steps) {
        if (r->event_s == INFINITY) fleet_schedule(f, slot, now_s);
    } else if (first_in_line && r->seg_steps > 1 && r->n < f->max_num_seqs && r->n < f->max_batch_tokens) {
        cut_short(f, slot, now_s);
    }
}

/* All its requests go, with the tokens of the steps that have ended: ids in order of coming, their number. */
int32_t replica_leave(fleet *f, int32_t slot, double now_s, int32_t *ids) {
    replica *r = &f->replicas[slot];
    int32_t n = 0;
    if (r->seg_steps) {
        int64_t steps = steps_by(r, now_s);
        double token_s = steps ? after(r, steps) : r->seg_start_s;
        advance(f, r, steps);
        for (int32_t i = 0; i < r->n; i++) f->requests[r->running[i]].last_s = token_s;
    }
    while (r->n) ids[n++] = stop_decoding(f, r, r->n - 1);
    for (int32_t i = 0; i < r->in_batch; i++) ids[n++] = r->batch[i];
    if (r->partial != NONE && (!r->in_batch || r->batch[0] != r->partial)) ids[n++] = r->partial;
    while (r->waiting.head != NONE) ids[n++] = pop_front(f, &r->waiting);
    while (r->late.head != NONE) ids[n++] = pop_front(f, &r->late);
    r->partial = NONE;
    r->in_batch = 0;
    r->reserved = r->ctx = 0;
    r->seg_steps = 0;
    fleet_schedule(f, slot, INFINITY);
    return n;
}

/* Many replicas: arrivals, the choice of a replica, the heap of events, and the accounts. */
#include "fleet.h"

/* -- the heap of events */

static void put(fleet *f, int32_t i, int32_t slot) {
    f->events[i] = slot;
    f->replicas[slot].place = i;
}

static void up(fleet *f, int32_t i) {
    int32_t slot = f->events[i];
    double at_s = f->replicas[slot].event_s;
    while (i > 0) {
        int32_t parent = (i - 1) / 2;
        if (f->replicas[f->events[parent]].event_s <= at_s) break;
        put(f, i, f->events[parent]);
        i = parent;
    }
    put(f, i, slot);
}

static void down(fleet *f, int32_t i) {
    int32_t slot = f->events[i];
    double at_s = f->replicas[slot].event_s;
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= f->num_events) break;
        if (child + 1 < f->num_events &&
            f->replicas[f->events[child + 1]].event_s < f->replicas[f->events[child]].event_s)
            child++;
        if (f->replicas[f->events[child]].event_s >= at_s) break;
        put(f, i, f->events[child]);
        i = child;
    }
    put(f, i, slot);
}

void fleet_schedule(fleet *f, int32_t slot, double event_s) {
    replica *r = &f->replicas[slot];
    double before_s = r->event_s;
    r->event_s = event_s;
    if (event_s < before_s) up(f, r->place);
    else down(f, r->place);
}

/* -- requests */

static int32_t new_request(fleet *f) {
    if (f->free_request == NONE) {
        int32_t n = f->num_requests ? 2 * f->num_requests : 1024;
        request *grown = realloc(f->requests, sizeof(request) * (size_t)n);
        if (!grown) return NONE;
        f->requests = grown;
        for (int32_t i = f->num_requests; i < n; i++) grown[i].next = i + 1 < n ? i + 1 : NONE;
        f->free_request = f->num_requests;
        f->num_requests = n;
    }
    int32_t id = f->free_request;
    f->free_request = f->requests[id].next;
    return id;
}

static void hold(fleet *f, int32_t id, int32_t behind) {
    request *q = &f->requests[id];
    q->slot = NONE;
    f->num_held++;
    if (behind == NONE) {
        q->next = f->held.head;
        f->held.head = id;
    } else {
        q->next = f->requests[behind].next;
        f->requests[behind].next = id;
    }
    if (q->next == NONE) f->held.tail = id;
}

static double draw(fleet *f) { /* xorshift64*, as a number below 1 */
    uint64_t x = f->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    f->random = x;
    return (double)(x * 2685821657736338717ull >> 11) * 0x1p-53;
}

static void count_project(fleet *f, const request *q, int32_t slot, int32_t change) {
    if (q->project == NONE) return;
    int32_t *n = &f->of_project[(int64_t)slot * f->projects_room + q->project];
    f->num_projects[slot] -= *n != 0;
    *n += change;
    f->num_projects[slot] += *n != 0;
}

/* As `expected_wait_s` of fleet/policies/router.py. */
static double expected_wait_s(const fleet *f, int32_t slot, int32_t project) {
    int32_t running = f->load[slot], ahead = running, rivals = f->num_projects[slot];
    if (running <= 0) return 0;
    if (rivals) {
        int32_t mine = project == NONE ? 0 : f->of_project[(int64_t)slot * f->projects_room + project];
        if (mine) rivals--;
        int64_t fair = mine + (int64_t)rivals * (mine + 1);
        if (fair < running) ahead = (int32_t)fair;
    }
    double wait_s = running * f->running_s;
    if (f->prompt_load[slot]) wait_s += (double)f->prompt_load[slot] * f->prompt_token_s * ahead / running;
    if (running >= f->max_num_seqs) wait_s += (1 + (double)(running - f->max_num_seqs) * ahead / running) * f->slot_s;
    return wait_s;
}

/* As `route` for a request without adapter and prefix: the better of two that are drawn, one at random if they are
 * equal. NONE if no replica takes requests, or the chosen one has enough. */
static int32_t choose(fleet *f, const request *q, double now_s) {
    int32_t n = f->num_takers, i = 0, j = 1;
    if (!n) return NONE;
    if (f->choose) return f->choose(q->ticket, now_s, q->prompt, q->project, q->adapter, &f->delay_s);
    int32_t best = f->takers[0];
    if (n > 2) {
        i = (int32_t)(draw(f) * n), j = (int32_t)(draw(f) * (n - 1));
        j += j >= i;
    }
    if (n > 1) {
        double a_s = expected_wait_s(f, f->takers[i], q->project), b_s = expected_wait_s(f, f->takers[j], q->project);
        best = f->takers[b_s < a_s || (b_s == a_s && draw(f) * 2 < 1) ? j : i];
    }
    return f->queue_limit && f->load[best] >= f->queue_limit ? NONE : best;
}

/* -- requests whose adapter is being read */

/* Who is read at the same moment enters the queue in order of arrival. */
static int read_before(const loading *a, const loading *b) {
    return a->ready_s < b->ready_s || (a->ready_s == b->ready_s && a->ticket < b->ticket);
}

static void sink_load(fleet *f, int32_t i) {
    loading moving = f->loads[i];
    for (int32_t child; (child = 2 * i + 1) < f->num_loads; i = child) {
        if (child + 1 < f->num_loads && read_before(&f->loads[child + 1], &f->loads[child])) child++;
        if (!read_before(&f->loads[child], &moving)) break;
        f->loads[i] = f->loads[child];
    }
    f->loads[i] = moving;
}

static int add_load(fleet *f, int32_t id, double ready_s) {
    if (f->num_loads == f->loads_room) {
        loading *grown = realloc(f->loads, sizeof(loading) * (size_t)(2 * f->loads_room + 64));
        if (!grown) return 0;
        f->loads = grown;
        f->loads_room = 2 * f->loads_room + 64;
    }
    loading new = {ready_s, f->requests[id].ticket, id};
    int32_t i = f->num_loads++;
    for (int32_t parent; i > 0 && read_before(&new, &f->loads[parent = (i - 1) / 2]); i = parent)
        f->loads[i] = f->loads[parent];
    f->loads[i] = new;
    return 1;
}

static void end_load(fleet *f) {
    loading first = f->loads[0];
    f->loads[0] = f->loads[--f->num_loads];
    if (f->num_loads) sink_load(f, 0);
    replica_submit(f, f->requests[first.id].slot, first.id, first.ready_s);
}

/* Those of a slot leave it, in order of arrival; their number. */
static int32_t leave_loading(fleet *f, int32_t slot, int32_t *ids) {
    int32_t n = 0, kept = 0;
    for (int32_t i = 0; i < f->num_loads; i++) {
        int32_t id = f->loads[i].id, at = n;
        if (f->requests[id].slot != slot) {
            f->loads[kept++] = f->loads[i];
            continue;
        }
        for (; at > 0 && f->requests[ids[at - 1]].ticket > f->requests[id].ticket; at--) ids[at] = ids[at - 1];
        ids[at] = id;
        n++;
    }
    f->num_loads = kept;
    for (int32_t i = kept / 2; n && i-- > 0;) sink_load(f, i);
    for (int32_t i = 0; i < n; i++) f->requests[ids[i]].order = ++f->order;
    return n;
}

static void send(fleet *f, int32_t id, int32_t slot, double now_s) {
    request *q = &f->requests[id];
    double delay_s = f->delay_s;
    f->delay_s = 0;
    q->slot = slot;
    f->load[slot]++;
    count_project(f, q, slot, 1);
    if (!q->emitted) f->no_token[slot]++;
    f->prompt_load[slot] += q->prompt;
    q->weighs = 1;
    if (!(delay_s > 0) || !add_load(f, id, now_s + delay_s)) replica_submit(f, slot, id, now_s);
}

static void leave(fleet *f, request *q) {
    count_project(f, q, q->slot, -1);
    if (f->told) f->told(q->ticket, 1);
}

/* Room for counts of that project at each slot. */
static int know_project(fleet *f, int32_t project) {
    if (project < f->projects_room) return 1;
    int32_t room = 2 * project + 16;
    int32_t *grown = calloc((size_t)f->room * (size_t)room, 4);
    if (!grown) return 0;
    for (int32_t slot = 0; slot < f->room && f->projects_room; slot++)
        memcpy(grown + (int64_t)slot * room, f->of_project + (int64_t)slot * f->projects_room,
               4 * (size_t)f->projects_room);
    free(f->of_project);
    f->of_project = grown;
    f->projects_room = room;
    return 1;
}

static void send_held(fleet *f, double now_s) {
    while (f->held.head != NONE) {
        int32_t id = f->held.head, slot = choose(f, &f->requests[id], now_s);
        if (slot == NONE) return;
        f->held.head = f->requests[id].next;
        if (f->held.head == NONE) f->held.tail = NONE;
        f->num_held--;
        send(f, id, slot, now_s);
    }
}

static void in_flight(fleet *f, double now_s, int64_t change) {
    f->area += (double)f->in_flight * (now_s - f->area_since_s);
    f->area_since_s = now_s;
    f->in_flight += change;
}

/* -- first tokens */

static ticket *of(fleet *f, int64_t number) { return &f->ring[number & (f->ring_room - 1)]; }

static int new_ticket(fleet *f, double arrival_s) {
    if (f->next_ticket - f->oldest >= f->ring_room) {
        ticket *grown = malloc(sizeof(ticket) * 2 * (size_t)f->ring_room);
        if (!grown) return 0;
        for (int64_t i = f->oldest; i < f->next_ticket; i++) grown[i & (2 * f->ring_room - 1)] = *of(f, i);
        free(f->ring);
        f->ring = grown;
        f->ring_room *= 2;
    }
    *of(f, f->next_ticket++) = (ticket){arrival_s, NAN};
    return 1;
}

/* Those whose time is over: late if they have no first token in time. Then the ring forgets what is known. */
static void count_late(fleet *f, double now_s) {
    while (f->late_at < f->next_ticket) {
        const ticket *t = of(f, f->late_at);
        if (t->arrival_s + f->ttft_s >= now_s) break;
        f->bin_late += !(t->first_s - t->arrival_s <= f->ttft_s);
        f->late_at++;
    }
    while (f->oldest < f->late_at && !isnan(of(f, f->oldest)->first_s)) f->oldest++;
}

/* Of the requests without a first token. */
double sim_oldest_wait_s(const fleet *f, double now_s) {
    for (int64_t i = f->oldest; i < f->next_ticket; i++)
        if (isnan(f->ring[i & (f->ring_room - 1)].first_s)) return now_s - f->ring[i & (f->ring_room - 1)].arrival_s;
    return 0;
}

static void tally(int64_t *hist, double s) {
    static const double scale = HIST_BINS / 27.631021115928547; /* ln(HIST_MOST_S / HIST_LEAST_S) */
    int32_t bin = s > HIST_LEAST_S ? (int32_t)(log(s / HIST_LEAST_S) * scale) : 0;
    hist[bin < HIST_BINS ? bin : HIST_BINS - 1]++;
}

static void first_token(fleet *f, request *q, double now_s) {
    double ttft_s = now_s - q->arrival_s;
    q->first_s = now_s;
    of(f, q->ticket)->first_s = now_s;
    if (q->ticket < f->record_n) f->record_first_s[q->ticket] = now_s;
    f->no_token[q->slot]--;
    if (q->arrival_s < f->measure_from_s) return;
    f->firsts++;
    f->within += ttft_s <= f->ttft_s;
    f->ttft_sum_s += ttft_s;
    if (ttft_s > f->ttft_most_s) f->ttft_most_s = ttft_s;
    tally(f->ttft_hist, ttft_s);
}

static void resumed(fleet *f, request *q, double now_s) {
    double stall_s = now_s - q->last_s;
    f->stalls++;
    f->stall_sum_s += stall_s;
    if (stall_s > f->stall_most_s) f->stall_most_s = stall_s;
}

static void arrived_elsewhere(fleet *f, request *q, double now_s) {
    replica *r = &f->replicas[q->left_slot];
    if (q->left && r->life == q->left && !--r->moving && !f->load[q->left_slot]) r->emptied_s = now_s;
    q->left = 0;
}

/* A prompt of `id` is computed, and with it its next token. */
void fleet_token(fleet *f, int32_t id, double now_s) {
    request *q = &f->requests[id];
    f->bin_output++;
    f->output_tokens++;
    if (q->emitted) resumed(f, q, now_s);
    else first_token(f, q, now_s);
    if (q->left) arrived_elsewhere(f, q, now_s);
    if (q->weighs) {
        q->weighs = 0;
        f->prompt_load[q->slot] -= q->prompt;
        if (f->told) f->told(q->ticket, 0);
    }
}

void fleet_end(fleet *f, int32_t id, double now_s) {
    request *q = &f->requests[id];
    int32_t slot = q->slot;
    if (q->ticket < f->record_n) f->record_end_s[q->ticket] = now_s;
    if (q->output > 1 && q->arrival_s >= f->measure_from_s) {
        double tpot_s = (now_s - q->first_s) / (q->output - 1);
        f->tpots++;
        f->tpot_sum_s += tpot_s;
        tally(f->tpot_hist, tpot_s);
    }
    f->ended++;
    in_flight(f, now_s, -1);
    q->next = f->free_request;
    f->free_request = id;
    leave(f, q);
    if (!--f->load[slot] && !f->replicas[slot].moving) f->replicas[slot].emptied_s = now_s;
}

static int arrive(fleet *f) {
    int64_t i = f->feed_at++;
    double now_s = f->feed_arrival_s[i];
    int32_t id, slot, prompt = f->feed_prompt[i], output = f->feed_output[i];
    if (!new_ticket(f, now_s)) return 0;
    f->arrived++;
    f->bin_arrivals++;
    f->bin_prompt += prompt;
    if ((int64_t)prompt + output > f->kv_tokens) {
        of(f, f->next_ticket - 1)->first_s = now_s;
        f->refused++;
        return 1;
    }
    if ((id = new_request(f)) == NONE) return 0;
    f->requests[id] = (request){
        .arrival_s = now_s, .ticket = f->next_ticket - 1, .prompt = prompt, .output = output, .next = NONE, .slot = NONE,
        .project = f->feed_project ? f->feed_project[i] : NONE, .adapter = f->feed_adapter ? f->feed_adapter[i] : NONE,
    };
    if (!know_project(f, f->requests[id].project)) return 0;
    f->counted += now_s >= f->measure_from_s;
    in_flight(f, now_s, 1);
    if (f->held.head != NONE || (slot = choose(f, &f->requests[id], now_s)) == NONE) hold(f, id, f->held.tail);
    else send(f, id, slot, now_s);
    return 1;
}

/* -- what Python calls */

void sim_free(fleet *f) {
    for (int32_t i = 0; i < f->room; i++) {
        free(f->replicas[i].running);
        free(f->replicas[i].batch);
    }
    free(f->replicas), free(f->load), free(f->no_token), free(f->prompt_load), free(f->taking);
    free(f->events), free(f->takers), free(f->place_in_takers), free(f->leaving), free(f->of_project), free(f->num_projects), free(f->loads);
    free(f->requests), free(f->ring), free(f->ttft_hist), free(f->tpot_hist), free(f);
}

/* profile: fixed_s, prompt_row_s, decode_row_s, context_token_s. limits: sequences, rows of a step, tokens of context,
 * requests a replica takes (0: any number), whether those in time go first. router: prompt_token_s, running_s, slot_s. NULL: no memory. */
fleet *sim_new(const double *profile, const int64_t *limits, const double *router, double ttft_s, double measure_from_s, uint64_t seed,
               int32_t room) {
    fleet *f = calloc(1, sizeof(fleet));
    if (!f) return NULL;
    size_t n = (size_t)room;
    f->fixed_s = profile[0], f->prompt_row_s = profile[1], f->decode_row_s = profile[2], f->context_token_s = profile[3];
    f->max_num_seqs = (int32_t)limits[0], f->max_batch_tokens = (int32_t)limits[1], f->kv_tokens = limits[2];
    f->queue_limit = (int32_t)limits[3], f->by_deadline = limits[4] != 0;
    f->ttft_s = ttft_s, f->measure_from_s = measure_from_s;
    f->random = (seed + 1) * 0x9E3779B97F4A7C15ull | 1;
    f->prompt_token_s = router[0], f->running_s = router[1], f->slot_s = router[2];
    f->free_request = f->held.head = f->held.tail = NONE;
    f->room = room;
    f->ring_room = 1024;
    f->replicas = calloc(n, sizeof(replica));
    f->load = calloc(n, 4), f->no_token = calloc(n, 4), f->prompt_load = calloc(n, 8), f->taking = calloc(n, 1);
    f->events = calloc(n, 4), f->takers = calloc(n, 4), f->place_in_takers = calloc(n, 4);
    f->num_projects = calloc(n, 4);
    f->ring = malloc(sizeof(ticket) * 1024);
    f->ttft_hist = calloc(HIST_BINS, 8), f->tpot_hist = calloc(HIST_BINS, 8);
    if (f->replicas && f->load && f->no_token && f->prompt_load && f->taking && f->events && f->takers &&
        f->place_in_takers && f->num_projects && f->ring && f->ttft_hist && f->tpot_hist)
        return f;
    if (!f->replicas) f->room = 0;
    sim_free(f);
    return NULL;
}

/* Prompts and times of requests by number of arrival are written to these arrays of n. */
void sim_record(fleet *f, int64_t n, double *first_s, double *end_s) {
    f->record_n = n, f->record_first_s = first_s, f->record_end_s = end_s;
}

/* Who decides where requests go, and is told of first tokens and of leaving. */
void sim_route(fleet *f, int (*choose)(int64_t, double, int32_t, int32_t, int32_t, double *), void (*told)(int64_t, int)) {
    f->choose = choose, f->told = told;
}

/* The arrays must live until they are used up; 0: the last ones are not. */
int sim_feed(fleet *f, int64_t n, const double *arrival_s, const int32_t *prompt, const int32_t *output,
             const int32_t *project, const int32_t *adapter) {
    if (f->feed_at < f->feed_n) return 0;
    f->feed_at = 0, f->feed_n = n;
    f->feed_arrival_s = arrival_s, f->feed_prompt = prompt, f->feed_output = output;
    f->feed_project = project, f->feed_adapter = adapter;
    return 1;
}

/* A replica begins to take at `slot`, which is free. */
int sim_add(fleet *f, int32_t slot, double now_s) {
    replica *r = &f->replicas[slot];
    int32_t *running = r->running ? r->running : malloc(4 * (size_t)f->max_num_seqs);
    int32_t *batch = r->batch ? r->batch : malloc(4 * (size_t)f->max_num_seqs);
    uint32_t life = r->life;
    *r = (replica){.running = running, .batch = batch, .waiting = {NONE, NONE}, .late = {NONE, NONE}, .partial = NONE, .event_s = INFINITY,
                   .emptied_s = now_s, .life = life + 1, .place = f->num_events};
    if (!running || !batch) return 0;
    f->events[f->num_events++] = slot;
    f->load[slot] = f->no_token[slot] = 0;
    f->prompt_load[slot] = 0;
    f->taking[slot] = 1;
    f->place_in_takers[slot] = f->num_takers;
    f->takers[f->num_takers++] = slot;
    send_held(f, now_s);
    return 1;
}

/* Nothing new goes to it. */
void sim_close(fleet *f, int32_t slot) {
    if (!f->taking[slot]) return;
    f->taking[slot] = 0;
    int32_t i = f->place_in_takers[slot], last = f->takers[--f->num_takers];
    f->takers[i] = last;
    f->place_in_takers[last] = i;
}

/* By order of coming to the replica: Shell's sort. */
static void sort_ids(const fleet *f, int32_t *ids, int32_t n) {
    int32_t gap = 1;
    while (gap < n / 3) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3) {
        for (int32_t i = gap; i < n; i++) {
            int32_t id = ids[i], j = i;
            for (; j >= gap && f->requests[ids[j - gap]].order > f->requests[id].order; j -= gap) ids[j] = ids[j - gap];
            ids[j] = id;
        }
    }
}

/* All requests of a closed replica go elsewhere with their tokens so far. `planned`: the replica counts as busy until
 * each has a token there. Their number; -1: no memory. */
int64_t sim_move(fleet *f, int32_t slot, double now_s, int planned) {
    replica *r = &f->replicas[slot];
    if (f->load[slot] > f->leaving_room) {
        f->leaving_room = 2 * f->load[slot];
        free(f->leaving);
        f->leaving = malloc(4 * (size_t)f->leaving_room);
        if (!f->leaving) return -1;
    }
    if (!f->load[slot]) return 0;
    int32_t n = replica_leave(f, slot, now_s, f->leaving), behind = NONE;
    n += leave_loading(f, slot, f->leaving + n);
    sort_ids(f, f->leaving, n);
    f->load[slot] = f->no_token[slot] = 0;
    f->prompt_load[slot] = 0;
    for (int32_t i = 0; i < n; i++) leave(f, &f->requests[f->leaving[i]]);
    for (int32_t i = 0; i < n; i++) {
        int32_t id = f->leaving[i], to = choose(f, &f->requests[id], now_s);
        request *q = &f->requests[id];
        if (q->left) arrived_elsewhere(f, q, now_s); /* it had left another: that one need not wait for it */
        q->left = planned ? r->life : 0;
        q->left_slot = slot;
        r->moving += planned != 0;
        q->done = 0;
        f->moved++;
        if (to != NONE) {
            send(f, id, to, now_s);
        } else {
            hold(f, id, behind);
            behind = id;
        }
    }
    if (!r->moving) r->emptied_s = now_s;
    return n;
}

/* The slot of a closed replica without requests is free again. */
void sim_drop(fleet *f, int32_t slot) {
    replica *r = &f->replicas[slot];
    int32_t i = r->place, last = f->events[--f->num_events];
    r->life++;
    if (i < f->num_events) {
        put(f, i, last);
        up(f, i);
        down(f, f->replicas[last].place);
    }
}

/* All that happens until now_s, and at it. With `more`, arrivals are yet to be fed: it goes no further than the last one
 * that has been. 1: now_s is reached, 0: not yet, -1: no memory. */
int sim_run(fleet *f, double now_s, int more) {
    for (;;) {
        double event_s = f->num_events ? f->replicas[f->events[0]].event_s : INFINITY;
        double load_s = f->num_loads ? f->loads[0].ready_s : INFINITY;
        if (f->feed_at == f->feed_n && more) return 0;
        if (f->feed_at < f->feed_n && f->feed_arrival_s[f->feed_at] <= fmin(event_s, load_s)) {
            if (f->feed_arrival_s[f->feed_at] > now_s) return 1;
            if (!arrive(f)) return -1;
        } else if (load_s <= event_s && load_s <= now_s) {
            end_load(f);
        } else if (event_s <= now_s) {
            int64_t ended = f->ended;
            replica_event(f, f->events[0]);
            if (f->ended > ended && f->num_takers) send_held(f, event_s);
        } else {
            return 1;
        }
    }
}

/* Counts since the last call: arrivals, prompt tokens, output tokens, mean in flight · seconds, late; then held,
 * oldest wait, in flight now. */
void sim_bin(fleet *f, double now_s, double *out) {
    for (int32_t i = 0; i < f->num_events; i++) replica_count(f, &f->replicas[f->events[i]], now_s);
    in_flight(f, now_s, 0);
    count_late(f, now_s);
    out[0] = (double)f->bin_arrivals, out[1] = (double)f->bin_prompt, out[2] = (double)f->bin_output;
    out[3] = f->area, out[4] = (double)f->bin_late;
    out[5] = (double)f->num_held, out[6] = sim_oldest_wait_s(f, now_s), out[7] = (double)f->in_flight;
    f->bin_arrivals = f->bin_prompt = f->bin_output = f->bin_late = 0;
    f->area = 0;
}

void sim_arrays(fleet *f, const void **out) {
    out[0] = f->load, out[1] = f->no_token, out[2] = f->prompt_load, out[3] = f->taking;
    out[4] = f->ttft_hist, out[5] = f->tpot_hist;
}

/* When the replica last became empty; INFINITY while requests are in it or on their way from it. */
double sim_emptied_s(const fleet *f, int32_t slot) {
    const replica *r = &f->replicas[slot];
    return f->load[slot] || r->moving ? INFINITY : r->emptied_s;
}

void sim_totals(const fleet *f, double *out) {
    const double totals[] = {
        (double)f->arrived, (double)f->refused, (double)f->ended, (double)f->counted, (double)f->firsts,
        (double)f->within, f->ttft_sum_s, f->ttft_most_s, (double)f->tpots, f->tpot_sum_s, (double)f->preempted,
        (double)f->moved, (double)f->stalls, f->stall_sum_s, f->stall_most_s, (double)f->output_tokens,
        (double)f->in_flight,
    };
    memcpy(out, totals, sizeof totals);
}

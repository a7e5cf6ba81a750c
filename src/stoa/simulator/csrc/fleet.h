/* One fleet on simulated time: requests, replicas and what is counted. Filled and asked by core.py, whose slow twin
 * stepwise.py says the same in the plainest way.
 *
 *   arrivals ──▶ held (no replica takes) ──▶ a replica's queue ──▶ its step: prompts in chunks, the rest decode
 *                    ▲                                                      │
 *                    └────────── moved, or its replica is gone ◀────────────┘
 *
 * Between two events of a replica its batch does not change, so any number of steps is one event: after k steps of n
 * sequences with C tokens of context, k·(fixed + n·decode_row + C·context_token) + context_token·n·k(k-1)/2 seconds
 * have passed. Sequences all decode in step; what a sequence still lacks is `mark - steps` of its replica. */

#ifndef STOA_SIMULATOR_FLEET_H
#define STOA_SIMULATOR_FLEET_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };
#define LATE_MOST_S 120.0       /* who waits longer has one of LATE_SHARE places, as in engine/deadlines.py */
enum { LATE_SHARE = 4 };
#define ORDER_RESUMED ((int64_t)1 << 62)
enum { HIST_BINS = 4096 };      /* logarithmic, HIST_LEAST_S to HIST_MOST_S */
#define HIST_LEAST_S 1e-5
#define HIST_MOST_S 1e7

typedef struct {
    double arrival_s, first_s, last_s; /* last_s: its last token, as far as a move has fixed it */
    int64_t mark;                      /* the replica's count of steps at which it ends */
    int64_t ticket;                    /* its place in the ring of first tokens, counted from the first arrival */
    int64_t order;                     /* of coming to its replica, those with tokens first: the latest gives way */
    int32_t prompt, output, emitted;
    int32_t done;                      /* rows computed of prompt + emitted */
    int32_t rows;                      /* of the step under way */
    int32_t next;                      /* in a queue, or in the list of free places */
    int32_t slot;
    int32_t project, adapter;
    uint32_t left;                     /* life of the replica it is leaving, 0: none */
    int32_t left_slot;
    uint8_t weighs;                    /* its prompt counts in prompt_load */
} request;

typedef struct {
    double ready_s;
    int64_t ticket;
    int32_t id;
} loading; /* a request whose adapter is being read: it is not in the queue yet */

typedef struct {
    int32_t head, tail;
} queue;

typedef struct {
    queue waiting;         /* by order */
    queue late;            /* without a token, and too late for one in time; by order */
    int32_t passed;        /* admitted since one of these */
    int32_t *running;      /* heap by mark: those that decode */
    int32_t *batch;        /* prompts of the step under way; at most the last one stays incomplete */
    int32_t n, in_batch;   /* sequences in each */
    int32_t partial;       /* a prompt that has some rows */
    int64_t steps, ctx;    /* decode steps so far; context of `running` in the next step */
    int64_t reserved;      /* context that `partial` has room for */
    double seg_start_s, seg_a_s, seg_b_s; /* k steps take k·a + b·k(k-1)/2 */
    int64_t seg_steps;     /* of the segment under way; 0: idle, or about to begin */
    int64_t seg_counted;   /* of these, steps whose tokens are counted */
    double event_s;        /* its end; INFINITY: idle */
    int32_t place;         /* in the heap of events */
    int32_t moving;        /* requests that left it and have no token elsewhere yet */
    uint32_t life;         /* counts the replicas that have had this slot; 0: none yet */
    double emptied_s;
} replica;

typedef struct {
    double arrival_s, first_s; /* first_s: NAN while unknown */
} ticket;

typedef struct fleet {
    /* profile */
    double fixed_s, prompt_row_s, decode_row_s, context_token_s;
    int32_t max_num_seqs, max_batch_tokens;
    int64_t kv_tokens;
    double ttft_s, measure_from_s;
    int by_deadline;
    /* requests */
    request *requests;
    int32_t num_requests, free_request;
    queue held;
    int64_t num_held;
    int64_t order;
    /* replicas: arrays by slot that Python reads */
    replica *replicas;
    int32_t *load, *no_token; /* requests sent and not ended; of these, without a first token */
    int64_t *prompt_load;     /* prompt tokens of those without a token from here */
    uint8_t *taking;
    int32_t num_slots, room;
    int32_t *events;          /* heap of slots by event_s */
    int32_t num_events;
    int32_t *takers, num_takers; /* slots that take, in no order */
    int32_t *place_in_takers;
    int32_t *leaving, leaving_room;
    int32_t queue_limit;      /* a replica takes so many; 0: any number */
    double prompt_token_s, running_s, slot_s; /* what the router weighs */
    int32_t *of_project;      /* [room, projects_room]: of `load`, by project */
    int32_t *num_projects;    /* how many of these are not 0 */
    int32_t projects_room;
    uint64_t random;
    int (*choose)(int64_t ticket, double now_s, int32_t prompt, int32_t project, int32_t adapter, double *delay_s);
    void (*told)(int64_t ticket, int left); /* of a first token here, or of leaving; both NULL: two choices */
    double delay_s;           /* of the request just chosen for: until its adapter is there */
    loading *loads;           /* heap by ready_s */
    int32_t num_loads, loads_room;
    /* arrivals fed and not yet come */
    const double *feed_arrival_s;
    const int32_t *feed_prompt, *feed_output, *feed_project, *feed_adapter;
    int64_t feed_at, feed_n;
    /* first tokens: a ring of tickets in order of arrival */
    ticket *ring;
    int64_t ring_room, oldest, late_at, next_ticket;
    double *record_first_s, *record_end_s; /* by ticket, or NULL */
    int64_t record_n;
    /* counts of the bin under way */
    double area_since_s, area;
    int64_t in_flight, bin_arrivals, bin_prompt, bin_output, bin_late;
    /* counts of the whole run */
    int64_t arrived, refused, ended, firsts, within, preempted, moved, stalls, output_tokens, counted;
    double ttft_sum_s, ttft_most_s, stall_sum_s, stall_most_s, tpot_sum_s;
    int64_t tpots;
    int64_t *ttft_hist, *tpot_hist;
} fleet;

/* replica.c */
void replica_submit(fleet *f, int32_t slot, int32_t id, double now_s);
void replica_event(fleet *f, int32_t slot);
int32_t replica_leave(fleet *f, int32_t slot, double now_s, int32_t *ids);
void replica_count(fleet *f, replica *r, double now_s);

/* fleet.c */
void fleet_schedule(fleet *f, int32_t slot, double event_s);
void fleet_token(fleet *f, int32_t id, double now_s);
void fleet_end(fleet *f, int32_t id, double now_s);

#endif

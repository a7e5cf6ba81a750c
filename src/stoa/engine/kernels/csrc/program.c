/* A step's calls, recorded once and played with one foreign call: what changes from step to step is only how many
 * rows there are, whose they are, and which adapters they use. */
#include "stoa_kernels.h"

enum { LINEAR, RMS_NORM, SILU_MUL, ROPE_APPEND, ATTENTION };

void play(const Ops *ops, const Call *calls, int64_t count, int64_t rows, const Segments *lora, const Rows *r) {
    for (const Call *c = calls; c < calls + count; c++) {
        switch (c->op) {
        case LINEAR: {
            LinearCall call = {c->p[0], c->p[1], c->p[2], lora, rows, c->n[0], c->n[1], c->n[2]};
            ops->linear(&call);
            break;
        }
        case RMS_NORM: ops->rms_norm(c->p[0], c->p[1], c->d, c->p[2], rows, c->n[0]); break;
        case SILU_MUL: ops->silu_mul(c->p[0], c->p[1], rows, c->n[0]); break;
        case ROPE_APPEND: {
            RopeCall call = {c->p[0], c->p[1], c->p[2], c->p[3], c->p[4], r, c->p[5], c->p[6], c->n[0], c->n[1], c->d};
            ops->rope_append(&call);
            break;
        }
        case ATTENTION: {
            AttentionCall call = {c->p[0], c->p[1], c->p[2], c->p[3], r, c->n[0], c->n[1], c->n[2], c->d};
            ops->attention(&call);
            break;
        }
        }
    }
}

// What is left when the products are done: y of each tile of rows, by the program that adds to it last.

// Write y of a tile that nobody adds to any more. One warp: a lane has four rows, and every other sum of them.
__device__ inline void finish(const Args& a, int there) {
    const int lane = threadIdx.x & 31, odd = lane >> 4, quarter = lane & 15;
    const int chain = there / a.tiles, tile = there - chain * a.tiles, r = tile * TILE + quarter * 4, n_rows = rows_of(a, chain);
    const int each = a.slices * GROUPS, n_sums = a.counts[2 * chain] * each, dense = a.counts[2 * chain + 1] * each;
    const i64 m = (i64)chain * a.chain_rows + r;
    u32 scale[4] = {0, 0, 0, 0}, bias[4] = {0, 0, 0, 0};
    load_four(a.row_scale, m, n_rows - r, a.row_type, scale);
    if (a.bias) load_four(a.bias, m, n_rows - r, a.bias_type, bias);
    for (int t = 0; t < TOKENS; t++) {
        const float4* sums = (const float4*)(a.partial + slot(a, chain, tile, 0, 0, 0, t) * TILE) + quarter;
        float total[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 8
        for (int s = odd; s < dense; s += 2) {
            const float4 v = __ldcg(sums + s * TOKENS * TILE / 4);
            total[0] += v.x, total[1] += v.y, total[2] += v.z, total[3] += v.w;
        }
        // A sparse block has one sum.
        for (int s = dense + odd * each; s < n_sums; s += 2 * each) {
            const float4 v = __ldcg(sums + s * TOKENS * TILE / 4);
            total[0] += v.x, total[1] += v.y, total[2] += v.z, total[3] += v.w;
        }
        u16* y = a.y + (i64)t * a.rows + m;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            total[i] += __shfl_xor_sync(~0u, total[i], 16);
            if (!odd && r + i < n_rows) y[i] = narrow(total[i] * word_value(scale[i], a.row_type) + word_value(bias[i], a.bias_type));
        }
    }
}

// Take tiles that are complete, and write y of them, until there will be no more. One warp.
__device__ inline void finish_tiles(const Args& a, Shared& own) {
    for (;;) {
        int there = -1;
        if ((threadIdx.x & 31) == 0) {
            const int ticket = atomicAdd(&own.n_taken, 1);
            for (;;) {
                const int closed = shared_value(&own.closed);
                if (shared_value(&own.n_complete) > ticket) {
                    there = own.complete[ticket];
                    break;
                }
                if (closed) break;
                __nanosleep(20);
            }
        }
        there = __shfl_sync(~0u, there, 0);
        if (there < 0) return;
        finish(a, there);
    }
}

// Counts what the consumers have done, and finds the tiles of rows that nobody else adds to. One warp.
__device__ inline void count_units(const Args& a, Shared& own, int first, int count) {
    int idle, idle_tiles = 0;
    for (int c = 0; c < a.n_chains; c++)
        if (!a.counts[2 * c + 1]) idle_tiles += tiles_of(a, c);
    const int first_idle = share(idle_tiles, idle), lane = threadIdx.x & 31, all = count + idle;
    int listed = 0;
    for (int base = 0; base < all; base += 32) {
        // A lane has one unit. What its tile needs of the weights comes into the second cache.
        const int here = min(32, all - base);
        int there = 0, needed = 0;
        if (lane < here) {
            find_tile(a, base + lane, first, count, first_idle, there, needed);
            const int chain = there / a.tiles;
            const i64 m = (i64)chain * a.chain_rows + (there - chain * a.tiles) * TILE;
            for (int line = 0; line < (a.row_type ? 1 : 2); line++) prefetch((const u8*)a.row_scale + m * (a.row_type ? 2 : 4) + line * 128);
        }
        if (base == 0) wait_for_input();
        for (int finished = 0; finished < here;) {
            int ready = __reduce_min_sync(~0u, (lane & 15) / 4 / JOBS + shared_value(&own.done[lane & 15]) * AT_ONCE);
            ready = ready >= count ? here : min(ready - base, here);
            if (ready <= finished) {
                __nanosleep(20);
                continue;
            }
            bool complete = false;
            if (finished <= lane && lane < ready) {
                int before = -1;
                if (needed) before = count_one(a.arrived + there);
                complete = before == needed - 1;
            }
            u32 mask = __ballot_sync(~0u, complete);
            finished = ready;
            if (listed + __popc(mask) > LISTED) {
                for (; mask; mask &= mask - 1) finish(a, __shfl_sync(~0u, there, __ffs(mask) - 1));
                continue;
            }
            if (complete) own.complete[listed + __popc(mask & ((1u << lane) - 1))] = there;
            listed += __popc(mask);
            __syncwarp();
            if (lane == 0) set_shared(&own.n_complete, listed);
        }
    }
    if (lane == 0) set_shared(&own.closed, 1);
}

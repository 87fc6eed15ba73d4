// The products.

__device__ inline u64 described(u32 address) {
    // Rows of 128 bytes, swizzled; eight rows are 1024 bytes.
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

struct Shared {
    i64 table[KNOWN * FIELDS];
    int counts[2 * KNOWN];
    int tile_of[THREADS], needed_of[THREADS], completed[THREADS];
    int n_completed;
    u64 barriers[2 * STAGES + U_SLOTS + Z_BUFFERS * (HALVES + 1)];
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) multiply(const __grid_constant__ Args given) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(16) Shared own;
    u8* stages = memory + Z_BUFFERS * Z_SPACE;
    u8* factors = stages + STAGES * STAGE;
    Args a = given;
    const int thread = threadIdx.x, warp = thread >> 5, slots = a.capacity * a.slices;
    const u32 full = shared_address(own.barriers), empty = full + 8 * STAGES, u_empty = empty + 8 * STAGES;
    const u32 z_full = u_empty + 8 * U_SLOTS, z_empty = z_full + 8 * Z_BUFFERS * HALVES;
    const int entries = a.n_chains * a.capacity;
    if (entries <= KNOWN) {
        for (int i = thread; i < entries * FIELDS; i += THREADS) own.table[i] = a.table[i];
        if (thread < 2 * a.n_chains) own.counts[thread] = a.counts[thread];
    }
    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, TOKENS);
        for (int i = 0; i < U_SLOTS; i++) barrier_init(u_empty + 8 * i, 4 * TOKENS);
        for (int i = 0; i < Z_BUFFERS * HALVES; i++) barrier_init(z_full + 8 * i, 1);
        for (int i = 0; i < Z_BUFFERS; i++) barrier_init(z_empty + 8 * i, 2);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        own.n_completed = 0;
    }
    __syncthreads();
    if (entries <= KNOWN) a.table = own.table, a.counts = own.counts;
    int units = 0, idle_tiles = 0;
    for (int c = 0; c < a.n_chains; c++) {
        const int tiles = tiles_of(a, c), dense = a.counts[2 * c + 1];
        units += dense * tiles * a.slices;
        if (!dense) idle_tiles += tiles;
    }
    int count, idle;
    const int first = share(units, count), first_idle = share(idle_tiles, idle), last = first + count;
    const int mine = count + idle;

    if (warp == 8) {  // brings signs and rows of U
        if ((thread & 31) == 0 && first < last) {
            Unit unit;
            unit.find(a, first);
            int stage = 0, phase = 1, slot = 0, u_phase = 1, rank_bytes = 0, n_rows = 0;
            bool plain = false;
            const u8 *map = nullptr, *from = nullptr;
            for (int u = first; u < last; u++, unit.next(a)) {
                if (u == first || unit.tile == 0) {
                    const i64 place = unit.place(a);
                    const i64* row = a.table + place * FIELDS;
                    const int kind = (int)row[KIND];
                    if (map != a.maps + place * 128) {
                        map = a.maps + place * 128;
                        asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
                    }
                    plain = row[PLAIN] != 0;
                    rank_bytes = (int)row[RANK] * (kind == SIGN8 ? 1 : 2);
                    from = (const u8*)row[U];
                    n_rows = rows_of(a, unit.chain);
                }
                const int r = unit.tile * TILE, halves = halves_of(a, unit.slice);
                int u_bytes = 0;
                const u8* u_from = (const u8*)((u64)(from + (i64)r * rank_bytes) & ~15ull);
                if (rank_bytes <= 32) {
                    u_bytes = ((int)(from + (i64)min(r + TILE, n_rows) * rank_bytes - u_from) + 15) & ~15;
                    barrier_wait(u_empty + 8 * slot, u_phase);
                }
                for (int h = 0; h < halves; h++) {
                    barrier_wait(empty + 8 * stage, phase);
                    const u32 arrival = full + 8 * stage;
                    barrier_expect(arrival, STAGE + (h == 0 ? u_bytes : 0));
                    // Past the end of the rows the signs read as zeros: those of a block without any.
                    asm volatile(
                        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                            shared_address(stages + stage * STAGE)),
                        "l"(map), "r"(unit.slice * (SLICE / 8) + h * 128), "r"(plain ? 1 << 30 : r), "r"(arrival)
                        : "memory");
                    if (h == 0 && u_bytes) bulk_copy(shared_address(factors + slot * U_BYTES), u_from, u_bytes, arrival);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
                if (rank_bytes <= 32 && ++slot == U_SLOTS) slot = 0, u_phase ^= 1;
            }
        }
    } else if (warp == 9) {  // brings Z
        if ((thread & 31) == 0 && first < last) {
            Unit unit;
            unit.find(a, first);
            i64 known = -1;
            int buffer = 0, phase = 1;
            wait_for_input();
            for (int u = first; u < last; u++, unit.next(a)) {
                if (u != first && unit.tile) continue;
                const i64 own_chain = (i64)unit.chain * a.capacity, wanted = (own_chain + a.table[(own_chain + unit.segment) * FIELDS + SHARED]) * a.slices + unit.slice;
                if (wanted == known) continue;
                known = wanted;
                barrier_wait(z_empty + 8 * buffer, phase);
                const u8* from = a.z + wanted * Z_ALL;
                const u32 to = shared_address(memory + buffer * Z_SPACE);
                const int halves = halves_of(a, unit.slice);
                for (int h = 0; h < halves; h++) {
                    const u32 arrival = z_full + 8 * (buffer * HALVES + h);
                    barrier_expect(arrival, Z_HALF + (h == 0 ? Z_TAIL : 0));
                    bulk_copy(to + h * Z_HALF, from + h * Z_HALF, Z_HALF, arrival);
                    if (h == 0) bulk_copy(to + Z_BYTES, from + Z_BYTES, Z_TAIL, arrival);
                }
                // A buffer's barriers all have the same number of phases.
                for (int h = halves; h < HALVES; h++) barrier_arrive(z_full + 8 * (buffer * HALVES + h));
                if (++buffer == Z_BUFFERS) buffer = 0, phase ^= 1;
            }
        }
    } else if (warp > 9) {  // looks up where the sums belong
        for (int i = thread - 320; i < min(mine, THREADS); i += 64)
            find_tile(a, i, first, count, first_idle, own.tile_of[i], own.needed_of[i]);
    } else if (first < last) {
        const int group = warp >> 2, lane = thread & 31, quad = lane & 3, token = TOKENS == 2 ? group : 0;
        const int within = (warp & 3) * 16 + (lane >> 2);  // and this plus 8: rows of the tile
        const bool elected = (thread & 127) == 0;
        Unit unit;
        unit.find(a, first);
        int stage = 0, phase = 0, slot = 0, slice = -1, z_group = -1, width = 0, rank = 0, n_rows = 0;
        i64 shared = -1;
        bool bytes = false;
        const u8* u_rows = nullptr;
        float step[RANKS / 4];
        int sum[RANKS / 4];
        // The consumers take turns: while one multiplies, the other adds up.
        if (group == 1) asm volatile("bar.arrive 2, 256;" ::: "memory");
        for (int u = first; u < last; u++, unit.next(a)) {
            const int halves = halves_of(a, unit.slice);
            if (u == first || unit.tile == 0) {
                const i64* row = a.table + unit.place(a) * FIELDS;
                const i64 wanted = (i64)unit.chain * a.capacity + row[SHARED];
                if (wanted != shared || unit.slice != slice) {
                    if (z_group >= 0) {
                        // Also what this consumer had no unit of must have come before it can go.
                        for (int h = 1; h < HALVES; h++) barrier_wait(z_full + 8 * (z_group % Z_BUFFERS * HALVES + h), z_group / Z_BUFFERS & 1);
                        if (elected) barrier_arrive(z_empty + 8 * (z_group % Z_BUFFERS));
                    } else {
                        wait_for_input();
                    }
                    z_group++;
                    barrier_wait(z_full + 8 * (z_group % Z_BUFFERS * HALVES), z_group / Z_BUFFERS & 1);
                    shared = wanted, slice = unit.slice;
                }
                const u8* tail = memory + z_group % Z_BUFFERS * Z_SPACE + Z_BYTES;
                const int kind = (int)row[KIND];
                bytes = kind == SIGN8;
                width = (int)row[WIDTH], rank = (int)row[RANK], u_rows = (const u8*)row[U], n_rows = rows_of(a, unit.chain);
                const float* scale = (const float*)row[SCALE];
                const float gain = row[PLAIN] ? -__int_as_float((int)row[GAIN]) : __int_as_float((int)row[GAIN]);
#pragma unroll
                for (int i = 0; i < RANKS / 4; i++) {
                    const int r = i / 2 * 8 + quad * 2 + i % 2;
                    step[i] = r < width ? ((const float*)tail)[token * RANKS + r] * gain * (scale ? scale[r] : 1.f) : 0.f;
                    sum[i] = 0;
#pragma unroll 4
                    for (int p = 0; p < PARTS; p++)
                        if (slice * SLICE + p * 128 < a.columns) sum[i] += ((const int*)tail)[TOKENS * RANKS + (p * TOKENS + token) * RANKS + r];
                }
            }
            const int rank_bytes = rank * (bytes ? 1 : 2);
            const bool local = rank_bytes <= 32;
            if (TOKENS == 1 && ((u - first) & 1) != group) {
                stage += halves;
                if (stage >= STAGES) stage -= STAGES, phase ^= 1;
                if (local && ++slot == U_SLOTS) slot = 0;
                continue;
            }
            u32 acc[N / 2];
            const u32 z_here = shared_address(memory + z_group % Z_BUFFERS * Z_SPACE + token * Z_TILE);
            const int first_stage = stage;
            const u32 z_arrival = z_full + 8 * (z_group % Z_BUFFERS * HALVES), z_phase = z_group / Z_BUFFERS & 1;
            asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
            barrier_wait(full + 8 * stage, phase);
            u64 da = described(shared_address(stages + stage * STAGE)), db = described(z_here);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < 4; k++) WGMMA(acc, da + 2 * k, db + 2 * k, k > 0);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            if (halves == HALVES) {
                if (++stage == STAGES) stage = 0, phase ^= 1;
                barrier_wait(full + 8 * stage, phase);
                barrier_wait(z_arrival + 8, z_phase);
                da = described(shared_address(stages + stage * STAGE)), db = described(z_here + Z_HALF);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < 3; k++) WGMMA(acc, da + 2 * k, db + 2 * k, 1);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                WGMMA(acc, da + 6, db + 6, 1);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            }
            // Two columns of U in a word, of each of two rows.
            u32 left[2][RANKS / 8];
            const int skew = (int)((u64)(u_rows + (i64)unit.tile * TILE * rank_bytes) & 15);
            if (local && !(rank & 1) && !(skew & (bytes ? 1 : 3))) {
                const u8* from = factors + slot * U_BYTES + skew + within * rank_bytes + quad * (bytes ? 2 : 4);
#pragma unroll
                for (int j = 0; j < 2; j++) {
#pragma unroll
                    for (int i = 0; i < RANKS / 8; i++) {
                        left[j][i] = 0;
                        if (unit.tile * TILE + within + 8 * j < n_rows && quad * 2 + 8 * i < width) {
                            if (bytes) left[j][i] = *(const u16*)(from + j * 8 * rank + 8 * i);
                            else left[j][i] = *(const u32*)(from + j * 16 * rank + 16 * i);
                        }
                    }
                }
            } else {
#pragma unroll 1
                for (int p = 0; p < RANKS / 4; p++) {
                    const int j = p & 1, i = p >> 1, m = unit.tile * TILE + within + 8 * j, r = quad * 2 + 8 * i;
                    u32 low = 0, high = 0;
                    if (m < n_rows) {
                        const u8* from = local ? factors + slot * U_BYTES + skew + (within + 8 * j) * rank_bytes : u_rows + (i64)m * rank_bytes;
                        if (r < width) low = bytes ? from[r] : ((const u16*)from)[r];
                        if (r + 1 < width) high = bytes ? from[r + 1] : ((const u16*)from)[r + 1];
                    }
                    const u32 both = low | high << (bytes ? 8 : 16);
                    if (i == 0) {
                        if (j == 0) left[0][0] = both;
                        else left[1][0] = both;
                    } else {
                        if (j == 0) left[0][RANKS / 8 - 1] = both;
                        else left[1][RANKS / 8 - 1] = both;
                    }
                }
            }
            if (bytes) {
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int i = 0; i < RANKS / 8; i++) left[j][i] = wide((u16)left[j][i]);
            }
            float* to = a.partial + (((i64)(unit.chain * a.tiles + unit.tile) * slots + unit.segment * a.slices + unit.slice) * TOKENS + token) * TILE + within;
            if (local) {
                __syncwarp();
                if (lane == 0) barrier_arrive(u_empty + 8 * slot);
                if (++slot == U_SLOTS) slot = 0;
            }
            if (halves == HALVES) {
                asm volatile("wgmma.wait_group.sync.aligned 2;" ::: "memory");
                if (elected) barrier_arrive(empty + 8 * first_stage);
                // The other one may begin while the last product ends.
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            }
            if (TOKENS == 2 && group == 0 || u + 1 < last) asm volatile("bar.arrive %0, 256;" ::"r"(3 - group) : "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
            for (int i = 0; i < N / 2; i++) asm volatile("" : "+r"(acc[i])::"memory");
            if (elected) barrier_arrive(empty + 8 * stage);
            if (++stage == STAGES) stage = 0, phase ^= 1;
            float result[2] = {0.f, 0.f};
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int i = 0; i < RANKS / 4; i++) {
                    // Column b·RANKS + r of the product: tiles of 8 columns, of which a thread has two, in two rows.
                    int s = 0;
#pragma unroll
                    for (int b = BITS - 1; b >= 0; b--) {
                        const int v = acc[(b * (RANKS / 8) + i / 2) * 4 + j * 2 + i % 2];
                        s = b == BITS - 1 ? -v : 2 * s + v;
                    }
                    result[j] += (float)(2 * s - sum[i]) * step[i] * half_value((u16)(left[j][i / 2] >> 16 * (i % 2)));
                }
                result[j] += __shfl_xor_sync(~0u, result[j], 1);
                result[j] += __shfl_xor_sync(~0u, result[j], 2);
            }
            if (quad == 0) to[0] = result[0], to[8] = result[1];
        }
        // The other one may need what comes after.
        if (elected) barrier_arrive(z_empty + 8 * (z_group % Z_BUFFERS));
    }
    // All sums of this program are written: count them, and finish the tiles that nobody else adds to.
    // A program without units also comes here: the counters must have been cleared.
    wait_for_input();
    __syncthreads();
    for (int base = 0; base < mine; base += THREADS) {
        const int i = base + thread;
        if (i < mine) {
            if (base) find_tile(a, i, first, count, first_idle, own.tile_of[thread], own.needed_of[thread]);
            const int there = own.tile_of[thread], needed = own.needed_of[thread];
            bool complete = !needed;
            if (needed) {
                int before;
                asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(a.arrived + there) : "memory");
                complete = before == needed - 1;
            }
            if (complete) own.completed[atomicAdd(&own.n_completed, 1)] = there;
        }
        __syncthreads();
        for (int j = thread >> 4; j < own.n_completed; j += THREADS / 16) finish(a, own.completed[j], thread & 15, slots);
        __syncthreads();
        if (thread == 0) own.n_completed = 0;
        __syncthreads();
    }
}

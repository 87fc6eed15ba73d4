// The products.

// How factors lie in shared memory, for the tensor cores: rows of 128 bytes, swizzled; eight rows are 1024 bytes.
__device__ inline u32 described(u32 address) { return (address & 0x3ffff) >> 4 | 1 << 16; }
#define DESCRIBED ((1024 >> 4) | 1 << 30)

// Two columns of U at a row, as float16 in a word; of what lies past `columns`, zeros. For what cannot be read as words.
__device__ inline u32 load_pair(const u8* from, bool bytes, int columns) {
    u32 low = 0, high = 0;
    if (columns > 0) low = bytes ? wide(from[0]) & 0xffff : *(const u16*)from;
    if (columns > 1) high = bytes ? wide(from[1]) & 0xffff : ((const u16*)from)[1];
    return low | high << 16;
}

// The groups take turns, so that one multiplies while others do what comes after.
__device__ inline void take_turn(int group) { await_group(1 + group); }
__device__ inline void pass_turn(int group) { tell_group(1 + (group + 1) % CONSUMERS); }

// Multiplies: a warp group takes one job of every AT_ONCE-th unit.
__device__ inline void multiply_units(const Args& a, const Ring& ring, Unit unit, int count, const u8* buffers, const u8* stages, const u8* factors, int* done) {
    const int thread = threadIdx.x, lane = thread & 31, quad = lane & 3, warp = thread >> 5, group = warp >> 2;
    const int within = (warp & 3) * 16 + (lane >> 2);  // and this plus 8: rows of the tile
    const int job = group % JOBS, token = job / GROUPS, column = job % GROUPS * 8 + quad * 2;  // and the next: of U
    const int rounds = (count + AT_ONCE - 1) / AT_ONCE;
    const i64 tile_step = (i64)a.capacity * a.slices * GROUPS * TOKENS * TILE;
    int z = -1, turn = group / JOBS, finished = 0;
    i64 known = -1;
    if (group == CONSUMERS - 1) pass_turn(group);
    for (int i = 0, n; i < count; i += n, unit.next_run(a)) {
        n = unit.run(count - i);
        const i64* row = unit.row(a);
        const i64 wanted = z_of(a, unit);
        if (wanted != known) {
            if (z >= 0) {
                // Also what this group had no unit of must have come before it can go.
                for (int h = 0; h < HALVES; h++) ring.wait_for_z(z, h);
                if (lane == 0) barrier_arrive(ring.z_empty + 8 * (z % Z_BUFFERS));
            }
            known = wanted, z++;
        }
        if (turn >= i + n) continue;
        const int width = (int)row[WIDTH];
        float step[2];
        {
            const float* scale = (const float*)row[SCALE];
            const float gain = row[PLAIN] ? -__int_as_float((int)row[GAIN]) : __int_as_float((int)row[GAIN]);
#pragma unroll
            for (int e = 0; e < 2; e++) step[e] = column + e < width ? gain * (scale ? scale[column + e] : 1.f) : 0.f;
        }
        const u8* u = (const u8*)row[U];
        const bool bytes = (int)row[KIND] == SIGN8, whole = halves_of(a, unit.slice) == HALVES;
        const int rank_bytes = (int)row[RANK] * (bytes ? 1 : 2), offset = (within * rank_bytes) + column * (bytes ? 1 : 2);
        // Rows of U are in shared memory, and words of them at addresses that words have.
        const bool local = rank_bytes <= 32, words = local && !(row[RANK] & 1) && !((u64)u & (bytes ? 1 : 3));
        const u32 kept = column + 1 < width ? ~0u : column < width ? 0xffff : 0;
        const u8* buffer = buffers + z % Z_BUFFERS * Z_SPACE;
        ring.wait_for_z(z, 0);
        int sum[2] = {0, 0};
        {
            const float* steps = (const float*)(buffer + Z_BYTES) + token * RANKS + column;
            const int* sums = (const int*)(buffer + Z_BYTES) + TOKENS * RANKS + token * RANKS + column;
#pragma unroll
            for (int e = 0; e < 2; e++) step[e] *= steps[e];
#pragma unroll 8
            for (int p = 0; p < min(PARTS, (a.columns - unit.slice * SLICE + 127) / 128); p++) {
                const int2 both = *(const int2*)(sums + p * TOKENS * RANKS);
                sum[0] += both.x, sum[1] += both.y;
            }
        }
        ring.wait_for_z(z, 1);
        const u32 db = described(shared_address(buffer + job * Z_TILE));
        float* to = a.partial + slot(a, unit.chain, unit.tile + turn - i, unit.segment, unit.slice, job % GROUPS, token) * TILE + within;
        for (; turn < i + n; turn += AT_ONCE, to += AT_ONCE * tile_step) {
            u32 acc[N / 2];
            const int stage = turn % STAGES, phase = turn / STAGES & 1;
            const u32 da = described(shared_address(stages + stage * STAGE));
            barrier_wait(ring.full + 8 * stage, phase);
            take_turn(group);
            begin_products();
#pragma unroll
            for (int k = 0; k < 4; k++) WGMMA(acc, da + k * 2, db + k * 2, k > 0);
            commit_products();
            if (group != CONSUMERS - 1 || finished + 1 < rounds) pass_turn(group);
            if (whole) {
                begin_products();
#pragma unroll
                for (int k = 0; k < 4; k++) WGMMA(acc, da + BOX / 16 + k * 2, db + Z_HALF / 16 + k * 2, 1);
                commit_products();
            }
            u32 left[2];
            const i64 first_row = (i64)(unit.tile + turn - i) * TILE;
            if (words) {
                const u32 from = shared_address(factors + stage * U_BYTES) + ((u32)((u64)u + first_row * rank_bytes) & 15) + offset;
#pragma unroll
                for (int j = 0; j < 2; j++) left[j] = kept & (bytes ? wide(shared_short(from + j * 8 * rank_bytes)) : shared_word(from + j * 8 * rank_bytes));
            } else {
                const int n_rows = rows_of(a, unit.chain);
                const u8* from = local ? factors + stage * U_BYTES + ((u64)(u + first_row * rank_bytes) & 15) : u + first_row * rank_bytes;
#pragma unroll 1
                for (int j = 0; j < 2; j++) {
                    const u32 both = load_pair(from + offset + j * 8 * rank_bytes, bytes, first_row + within + j * 8 < n_rows ? width - column : 0);
                    if (j == 0) left[0] = both;
                    else left[1] = both;
                }
            }
            await_products();
#pragma unroll
            for (int k = 0; k < N / 2; k++) settle(acc[k]);
            if (lane == 0) barrier_arrive(ring.empty + 8 * stage);
            float result[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                result[j] = 0.f;
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    // Column b·8 + quad·2 + e of the product: tiles of 8 columns, of which a thread has two, in two rows.
                    int s = -acc[(BITS - 1) * 4 + j * 2 + e];
#pragma unroll
                    for (int b = BITS - 2; b >= 0; b--) s = 2 * s + acc[b * 4 + j * 2 + e];
                    result[j] += (float)(2 * s - sum[e]) * step[e] * half_value((u16)(left[j] >> 16 * e));
                }
                result[j] += __shfl_xor_sync(~0u, result[j], 1);
                result[j] += __shfl_xor_sync(~0u, result[j], 2);
            }
            if (quad == 0) to[0] = result[0], to[8] = result[1];
            __syncwarp();
            finished++;
            if (lane == 0) set_shared(done + warp, finished);
        }
    }
    if (finished < rounds) {
        take_turn(group);
        if (group != CONSUMERS - 1) pass_turn(group);
    }
}

extern "C" __global__ void __launch_bounds__(32 * (WARPS + 4), 1) multiply(const __grid_constant__ Args given) {
    begin_next();
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(16) Shared own;
    u8 *stages = memory + Z_BUFFERS * Z_SPACE, *factors = stages + STAGES * STAGE;
    Args a = given;
    const int thread = threadIdx.x, warp = thread >> 5, entries = a.n_chains * a.capacity;
    const Ring ring(own.barriers);
    // Which units are this program's, and which the first one is: see `shares.py`.
    const int* const share = a.shares + blockIdx.x * SHARE_FIELDS;
    const int first = share[0], count = share[SHARE_FIELDS] - first;
    Unit unit;
    unit.chain = share[1], unit.slice = share[2], unit.segment = share[3], unit.tile = share[4];
    if (entries <= KNOWN) {
        for (int i = thread; i < entries * FIELDS; i += blockDim.x) own.table[i] = a.table[i];
        if (thread < 2 * a.n_chains) own.counts[thread] = a.counts[thread];
    }
    if (thread < WARPS) own.done[thread] = 0;
    if (thread == 0) own.n_complete = own.n_taken = own.closed = 0, ring.init();
    __syncthreads();
    if (entries <= KNOWN) a.table = own.table, a.counts = own.counts;
    unit.enter(a);
    if (warp < WARPS) {
        more_registers();
        if (count) multiply_units(a, ring, unit, count, memory, stages, factors, own.done);
        finish_tiles(a, own);
    } else {
        fewer_registers();
        if (warp == RING_WARP) {
            if ((thread & 31) == 0 && count) bring(a, ring, unit, count, stages, factors);
        } else if (warp == Z_WARP) {
            if ((thread & 31) == 0 && count) bring_z(a, ring, unit, count, memory);
        } else if (warp == COUNT_WARP) {
            count_units(a, own, first, count);
            finish_tiles(a, own);
        }
    }
}

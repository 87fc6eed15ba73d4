// The products.

// How factors lie in shared memory, for the tensor cores: rows of 128 bytes, swizzled; eight rows are 1024 bytes.
__device__ inline u32 described(u32 address) { return (address & 0x3ffff) >> 4 | 1 << 16; }
#define DESCRIBED ((1024 >> 4) | 1 << 30)

// The groups take turns, so that one multiplies while others do what comes after. All wait for who has the turn, so the numbers of barriers
// come from another lane: the compiler keeps them then, where it would compute them anew each time.
struct Turns {
    int own, next;  // barriers of this group, and of the one after
    __device__ Turns() {
        const int group = threadIdx.x >> 7;
        own = __shfl_sync(~0u, 1 + group, 0), next = __shfl_sync(~0u, 1 + (group + 1) % CONSUMERS, 0);
    }
    __device__ void take() const { await_group(own); }
    __device__ void pass() const { tell_group(next); }
};

// What counts are weighted with, of the units of a run.
struct Weights {
    float step[2];             // times the scale of U
    int sum[2];                // of all of Z
    int needed, largest, rank_bytes;
    u32 kept;                  // the numbers of U that are there
    u32 u, offset;             // of the unit with the turn 0, where U is in the memory, of which the lower half will do; and of a thread
    bool bytes, local;         // whether U is float8; whether it is in shared memory

    // Columns of U: this one, and the one GROUPS further.
    __device__ void find(const Args& a, const Shared& own, const Unit& unit, int first, int within, int column, int token) {
        const i64* row = unit.row(a);
        const int width = (int)row[WIDTH];
        needed = adders(a, unit.chain), largest = exponent(__uint_as_float(own.largest[token]));
        const float* scale = (const float*)row[SCALE];
        const float gain = row[PLAIN] ? -__int_as_float((int)row[GAIN]) : __int_as_float((int)row[GAIN]);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int r = column + e * GROUPS;
            step[e] = r < width ? gain * (scale ? scale[r] : 1.f) * own.step[token][r] : 0.f;
            sum[e] = own.z_sums[token][r];
        }
        bytes = (int)row[KIND] == SIGN8;
        const int size = bytes ? 1 : 2;
        rank_bytes = (int)row[RANK] * size, local = !WIDE || rank_bytes <= 32;
        kept = (column < width ? 0xffff : 0) | (column + GROUPS < width ? 0xffff0000 : 0);
        u = (u32)row[U] + first * rank_bytes, offset = within * rank_bytes + column * size;
    }
    // The numbers of U of a row and of that eight further down, from memory.
    __device__ void load(const Args& a, const Unit& unit, int at, int column, u32 (&left)[2]) const {
        const i64* row = unit.row(a);
        const int width = (int)row[WIDTH], size = bytes ? 1 : 2;
        const u8* from = (const u8*)row[U] + (i64)at * rank_bytes + column * size;
#pragma unroll 1
        for (int j = 0; j < 2; j++) {
            const bool there = at + j * 8 < rows_of(a, unit.chain);
            const u32 both = load_pair(from + j * 8 * rank_bytes, GROUPS * size, bytes, there && column < width, there && column + GROUPS < width);
            if (j == 0) left[0] = both;
            else left[1] = both;
        }
    }
};

// Multiplies: a warp group takes one job of every AT_ONCE-th unit.
__device__ inline void multiply_units(const Args& a, Shared& own, const Ring& ring, Unit unit, int count, u8* z, const u8* stages) {
    const u8 *factors = stages + STAGES * STAGE, *values = factors + STAGES * U_BYTES;
    const int thread = threadIdx.x, lane = thread & 31, quad = lane & 3;
    const int warp = warp_number(), group = warp >> 2;
    const int within = (warp & 3) * 16 + (lane >> 2);  // and this plus 8: rows of the tile
    const int job = group % JOBS, token = job / GROUPS, column = quad * 2 * GROUPS + job % GROUPS;
    int turn = group / JOBS;
    i64 known = -1;
    Added added;
    added.row = -1;
    const Turns turns;
    const int all_turns = (count + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
    if (group == CONSUMERS - 1) turns.pass();
    for (int i = 0, n; i < count; i += n, unit.next_run(a)) {
        n = unit.run(count - i);
        if (const i64 wanted = unit.z(a); wanted != known) {
            settle_row(a, added, token), added.row = -1;  // its registers are wanted
            make_z(a, own, ring, unit, z, known >= 0);
            known = wanted;
        }
        if (turn >= i + n) continue;
        const bool whole = halves_of(a, unit.slice) == HALVES;
        const u32 db = described(shared_address(z + token * Z_TOKEN + job % GROUPS * Z_TILE));
        const int first = (unit.tile - i) * TILE;  // row of the unit with the turn 0
        Weights weights;
        for (bool fresh = true; turn < i + n; turn += AT_ONCE, fresh = false) {
            u32 acc[N / 2];
            const int stage = turn % STAGES, phase = turn / STAGES & 1;
            const u32 da = described(shared_address(stages + stage * STAGE));
            // The first group passes its turn once more than the last one takes it: to whom has nothing left.
            u32 passes = group != CONSUMERS - 1 || turn + AT_ONCE < all_turns;
            settle(passes);
            barrier_wait(ring.full + 8 * stage, phase);
            turns.take();
            begin_products();
#pragma unroll
            for (int k = 0; k < 4; k++) WGMMA(acc, da + k * 2, db + k * 2, k > 0);
            commit_products();
            if (passes) turns.pass();
            if (whole) {
                begin_products();
#pragma unroll
                for (int k = 0; k < 4; k++) WGMMA(acc, da + BOX / 16 + k * 2, db + GROUPS * Z_TILE / 16 + k * 2, 1);
                commit_products();
            }
            // While that is multiplied.
            if (fresh) weights.find(a, own, unit, first, within, column, token);
            u32 left[2];
            if (weights.local) {
                const u32 from = shared_address(factors + stage * U_BYTES) + (weights.u + turn * TILE * weights.rank_bytes & 15) + weights.offset;
                if (weights.bytes) {
#pragma unroll
                    for (int j = 0; j < 2; j++) left[j] = weights.kept & wide(shared_byte(from + j * 8 * weights.rank_bytes) | shared_byte(from + j * 8 * weights.rank_bytes + GROUPS) << 8);
                } else {
#pragma unroll
                    for (int j = 0; j < 2; j++) left[j] = weights.kept & (shared_short(from + j * 8 * weights.rank_bytes) | (u32)shared_short(from + j * 8 * weights.rank_bytes + 2 * GROUPS) << 16);
                }
            } else {
                weights.load(a, unit, first + turn * TILE + within, column, left);
            }
            const float2 row_known = ((const float2*)(values + stage * ROW_BYTES))[within + 8 * (quad & 1)];
            await_products();
#pragma unroll
            for (int k = 0; k < N / 2; k++) settle(acc[k]);
            __syncwarp();
            if (lane == 0) barrier_arrive_after(ring.empty + 8 * stage, left[0] | left[1] | __float_as_uint(row_known.y));
            float result[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                result[j] = 0.f;
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    // Column b·8 + quad·2 + e of the product: tiles of 8 columns, of which a thread has two, in two rows.
                    int s = -acc[(BITS - 1) * 4 + j * 2 + e];
#pragma unroll
                    for (int b = BITS - 2; b >= 0; b--) {
                        // Half of them elsewhere than where products are added, which would be busy twice as long.
                        s = e ? twice_and(s, acc[b * 4 + j * 2 + e]) : 2 * s + (int)acc[b * 4 + j * 2 + e];
                    }
                    // The step times U first: a sum times the step may leave float32 where y does not.
                    result[j] += (float)(2 * s - weights.sum[e]) * (weights.step[e] * half_value((u16)(left[j] >> 16 * e)));
                }
            }
            // A lane keeps one of the rows.
            float total = quad & 1 ? result[1] : result[0];
            total += __shfl_xor_sync(~0u, quad & 1 ? result[0] : result[1], 1);
            total += __shfl_xor_sync(~0u, total, 2);
            settle_row(a, added, token);  // of the unit before
            added.row = -1;
            // Two lanes of four add to a row each, as far as there are rows.
            const int r = first + turn * TILE + within + 8 * (quad & 1);
            if (quad < 2 && r < rows_of(a, unit.chain)) added = add(a, unit.chain, first_of(a, unit.chain) + r, token, weights.needed, total, row_known, weights.largest);
        }
    }
    // All groups take as many turns.
    if (turn < all_turns) {
        turns.take();
        if (group != CONSUMERS - 1) turns.pass();
    }
    settle_row(a, added, token);
}

extern "C" __global__ void __launch_bounds__(32 * (WARPS + 1 + HELPERS), 1) multiply(const __grid_constant__ Given given) {
    begin_next();
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(16) Shared own;
    u8* stages = memory + Z_SPACE;
    Args a;
    (Common&)a = given.common;
    const int thread = threadIdx.x, warp = warp_number(), entries = a.n_chains * a.capacity;
    const Ring ring(own.barriers);
    // Everything is on its way at once, the table before it is known what of it this program needs.
    bool keep = entries <= KNOWN && thread < entries * FIELDS, keep_count = entries <= KNOWN && thread < 2 * a.n_chains;
#if MATRICES == 1
    a.matrix = given.matrices[0];
    const i64* line = a.matrix.table + thread;
    const int* number = a.matrix.counts + thread;
#else
    a.matrices = given.matrices, a.table = nullptr, a.counts = nullptr;
    const i64* line = nullptr;
    const int* number = nullptr;
    const int of_line = thread / (a.capacity * FIELDS), in_line = thread % (a.capacity * FIELDS);
#pragma unroll
    for (int m = 0; m < MATRICES; m++) {
        const Matrix& matrix = given.matrices[m];
        if (m == of_line) line = matrix.table + in_line, keep = keep && in_line < matrix.capacity * FIELDS;
        if (m == thread / 2) number = matrix.counts + thread % 2;
    }
#endif
    i64 kept = 0;
    int kept_count = 0;
    if (keep) kept = load_long(line);
    if (keep_count) kept_count = load_int(number);
    // Which units are this program's, and which the first one is: see `shares.py`.
    const int* const share = a.shares + blockIdx.x * SHARE_FIELDS;
    const int first = load_int(share), count = load_int(share + SHARE_FIELDS) - first;
    Unit unit;
    unit.chain = load_int(share + 1), unit.slice = load_int(share + 2), unit.segment = load_int(share + 3), unit.tile = load_int(share + 4);
    if (warp == RING_WARP + 1) {
        // Programs that begin once others have ended find theirs in the cache.
        for (int i = 16 * (thread & 31); i < ((int)gridDim.x + 1) * SHARE_FIELDS; i += 16 * 32) prefetch(a.shares + i);
    } else if (thread == 32 * RING_WARP) {
        ring.init();
    }
    if (thread < TOKENS) own.largest[thread] = 0;
    if (keep) own.table[thread] = kept;
    if (keep_count) own.counts[thread] = kept_count;
    __syncthreads();
#if MATRICES == 1
    if (entries <= KNOWN) a.matrix.table = own.table, a.matrix.counts = own.counts;
#else
    if (entries <= KNOWN) a.table = own.table, a.counts = own.counts;
#endif
    unit.enter(a);
    if (warp < WARPS) {
        more_registers();
        if (count) multiply_units(a, own, ring, unit, count, memory, stages);
        else look_for_largest(a, own, ring);
    } else {
        fewer_registers();
        if (warp == RING_WARP) {
            if ((thread & 31) == 0 && count) bring(a, ring, unit, count, stages);
        } else {
            help(a, own, ring, warp - RING_WARP - 1, stages + STAGES * (STAGE + U_BYTES + ROW_BYTES));
        }
    }
}

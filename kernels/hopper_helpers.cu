// What warps do that do not multiply: single entries, and rows that nobody adds to.
#define OF_LANE 2              // rows
#define PIECE (32 * OF_LANE)   // rows at a time

// Where the entries of a row of a sparse block begin.
__device__ inline int begin_of(const i64* line, int row, int n_rows) {
    if (row >= n_rows) return (int)line[RANK];
    return ((const int*)line[FIRST])[row >> 6] + (line[WIDTH] == 2 ? (int)((const u16*)line[U])[row] : ((const int*)line[U])[row]);
}

// x, and the scales of the columns of the first chains, in shared memory as far as there is room. Numbers from all over them are wanted: from
// the memory they would hold up all that the processor reads.
struct Held {
    u32 x;       // or 0
    int chains;
    __device__ Held(const Args& a, const u8* space, bool wanted) {
        x = wanted && x_bytes(a) <= X_SPACE && can_copy(a.x, x_bytes(a)) ? shared_address(space) : 0;
        const int most = x ? min((X_SPACE - x_bytes(a)) / scale_bytes(a), a.n_chains) : 0;
        for (chains = 0; chains < most && can_copy(of_chain(a, chains), scale_bytes(a));) chains++;
    }
    __device__ static int x_bytes(const Args& a) { return 2 * TOKENS * a.columns; }
    __device__ static int scale_bytes(const Args& a) { return a.columns * (a.col_type == 0 ? 4 : 2); }
    __device__ static bool can_copy(const void* from, int bytes) { return (((u64)from | bytes) & 15) == 0; }
    __device__ static const u8* of_chain(const Args& a, int chain) {
        return (const u8*)matrix_of(a, chain).col_scale + scales_of(a, chain) * (a.col_type == 0 ? 4 : 2);
    }
    __device__ u32 scales(const Args& a, int chain) const { return chain < chains ? x + x_bytes(a) + chain * scale_bytes(a) : 0; }
    // By one thread: what does not depend on what was launched before, and what does.
    __device__ void bring_scales(const Args& a, const Ring& ring) const {
        for (int c = 0; c < chains; c++) bulk_copy(scales(a, c), of_chain(a, c), scale_bytes(a), ring.x_here);
    }
    __device__ void bring_x(const Args& a, const Ring& ring) const {
        barrier_expect(ring.x_here, x_bytes(a) + chains * scale_bytes(a));
        bulk_copy(x, (const u8*)a.x, x_bytes(a), ring.x_here);
    }
};

// The entries of up to PIECE rows of a sparse block: those side by side are multiplied by lanes side by side, and what they make is
// added up from shared memory, by a lane for some rows, or by several for one where there are few. One warp.
struct Entries {
    const i64* line;
    int lanes, at[OF_LANE], stop[OF_LANE], here, middle, end, columns[CHUNK / 32];
    u32 codes[CHUNK / 32];
    float size;        // what all of them are multiplied by, 2^-DOWN with it

    // Lanes of a row, where so many rows have entries.
    __device__ static int lanes_of(int count) {
        int lanes = 1;
        while (2 * lanes * count <= 32) lanes *= 2;
        return lanes;
    }
    // As far as it goes without x.
    __device__ void begin(const Args& a, int chain, int segment, int first, int count) {
        const int n_rows = rows_of(a, chain);
        line = line_of(a, chain, segment);
        size = *(const float*)line[SCALE] * SMALLER;
        lanes = lanes_of(count);
        const int lane = (threadIdx.x & 31) / lanes;
#pragma unroll
        for (int e = 0; e < OF_LANE; e++) at[e] = begin_of(line, first + min(lane + 32 * e, count), n_rows);
        end = begin_of(line, first + count, n_rows);
        here = __shfl_sync(~0u, at[0], 0), middle = __shfl_sync(~0u, at[1], 0);
        // Those of a row end where those of the next one begin.
#pragma unroll
        for (int e = 0; e < OF_LANE; e++) {
            const int next = __shfl_sync(~0u, at[e], (threadIdx.x & 31) + lanes & 31);
            stop[e] = (threadIdx.x & 31) + lanes < 32 ? next : e ? end : middle;
        }
        ask(here);
        for (int i = here + CHUNK + (int)(threadIdx.x & 31) * 64; i < end; i += 32 * 64) prefetch((const u16*)line[V] + i), prefetch((const u8*)line[STRIDE] + i);
    }
    __device__ void ask(int from) {
#pragma unroll
        for (int k = 0; k < CHUNK / 32; k++) {
            const int i = from + k * 32 + (int)(threadIdx.x & 31);
            columns[k] = i < end ? ((const u16*)line[V])[i] : 0;
            codes[k] = i < end ? ((const u8*)line[STRIDE])[i] : 0;
        }
    }
    // The scales of their columns, as they are stored.
    __device__ void load_scales(const Args& a, int chain, u32 held, u32 (&out)[CHUNK / 32]) const {
        if (held) {
#pragma unroll
            for (int k = 0; k < CHUNK / 32; k++) out[k] = a.col_type == 0 ? shared_word(held + 4 * columns[k]) : shared_short(held + 2 * columns[k]);
            return;
        }
        const void* scales = matrix_of(a, chain).col_scale;
        const i64 own = scales_of(a, chain);
        if (a.col_type == 0) {
#pragma unroll
            for (int k = 0; k < CHUNK / 32; k++) out[k] = ((const u32*)scales)[own + columns[k]];
        } else {
#pragma unroll
            for (int k = 0; k < CHUNK / 32; k++) out[k] = ((const u16*)scales)[own + columns[k]];
        }
    }
    // What they add, times 2^-DOWN, for all tokens; all lanes of a row have a part of it.
    __device__ void sum(const Args& a, int chain, u32 held_x, u32 held_scales, float* products, float (&totals)[TOKENS][OF_LANE]) {
        const int lane = threadIdx.x & 31, own_lane = lane % lanes;
        for (; here < end; here += CHUNK) {
            u32 scales[CHUNK / 32];
            float weights[CHUNK / 32];
            load_scales(a, chain, held_scales, scales);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                u16 raw[CHUNK / 32];
                if (held_x) {
#pragma unroll
                    for (int k = 0; k < CHUNK / 32; k++) raw[k] = shared_short(held_x + 2 * (t * a.columns + columns[k]));
                } else {
                    const u16* x = a.x + (i64)t * a.columns;
#pragma unroll
                    for (int k = 0; k < CHUNK / 32; k++) raw[k] = x[columns[k]];
                }
                if (t == 0) {
                    // Not sooner, so that scales and x are on their way together.
                    word_values(scales, a.col_type, weights);
#pragma unroll
                    for (int k = 0; k < CHUNK / 32; k++) weights[k] *= size * byte_value(codes[k]);
                }
#pragma unroll
                for (int k = 0; k < CHUNK / 32; k++) products[k * 32 + lane] = narrow_value(raw[k]) * weights[k];
                if (t == TOKENS - 1 && here + CHUNK < end) ask(here + CHUNK);
                __syncwarp();
#pragma unroll
                for (int e = 0; e < OF_LANE; e++) {
                    if (e ? here + CHUNK <= middle : here >= middle) continue;
                    const int last = min(stop[e], here + CHUNK) - here;
#pragma unroll 4
                    for (int i = max(at[e] - here, 0) + own_lane; i < last; i += lanes) totals[t][e] += products[i];
                }
                __syncwarp();
            }
        }
    }
};

// Rows of a chain that have single entries, or nothing at all, some at a time: so many that all helpers have as much to do.
struct Rows {
    int chain, first, count, needed, each;
    bool any;
    __device__ explicit Rows(const Args& a) {
        const int all = gridDim.x * HELPERS;
        int total = 0;
        for (chain = 0; chain < a.n_chains; chain++)
            if (wanted(a)) total += rows_of(a, chain);
        any = total > 0;
        // The last piece of each chain may have less.
        const int pieces = max(all * ((total + PIECE * all - 1) / (PIECE * all)) - a.n_chains + 1, 1);
        each = min(max((total + pieces - 1) / pieces, 1), PIECE);
    }
    __device__ bool wanted(const Args& a) const {
        const int* counts = counts_of(a, chain);
        return counts[0] == 0 || counts[0] > counts[1];
    }
    // Those with a number, of all chains; false where there are not so many.
    __device__ bool find(const Args& a, int number) {
        for (chain = 0; chain < a.n_chains; chain++) {
            if (!wanted(a)) continue;
            const int n_rows = rows_of(a, chain), pieces = (n_rows + each - 1) / each;
            needed = adders(a, chain);
            if (number < pieces) {
                first = number * each, count = min(each, n_rows - first);
                return true;
            }
            number -= pieces;
        }
        return false;
    }
};

// For all rows that these are.
__device__ inline void help(const Args& a, Shared& own, const Ring& ring, int helper, const u8* x_space) {
    const int lane = threadIdx.x & 31;
    int number = helper * gridDim.x + blockIdx.x;
    Rows rows(a);
    Entries entries;
    bool some = rows.find(a, number), begun = some && rows.needed;
    if (begun) entries.begin(a, rows.chain, counts_of(a, rows.chain)[1], rows.first, rows.count);
    const Held held(a, x_space, rows.any);
    if (held.x && helper == 0 && lane == 0) held.bring_scales(a, ring);
    wait_for_input();
    if (held.x) {
        if (helper == 0 && lane == 0) held.bring_x(a, ring);
        barrier_wait(ring.x_here, 0);
    }
    for (; some; some = rows.find(a, number += HELPERS * gridDim.x)) {
        float totals[TOKENS][OF_LANE] = {};
        const int* counts = counts_of(a, rows.chain);
        const int lanes = rows.needed ? Entries::lanes_of(rows.count) : 1;
        const float2* row_values = row_values_of(a, rows.chain) + rows.first;
#pragma unroll
        for (int e = 0; e < OF_LANE; e++)
            if (lane + 32 * e < rows.count) prefetch(row_values + lane + 32 * e);
        for (int s = counts[1]; s < counts[0]; s++) {
            if (!begun) entries.begin(a, rows.chain, s, rows.first, rows.count);
            begun = false;
            entries.sum(a, rows.chain, held.x, held.scales(a, rows.chain), own.products[helper], totals);
        }
        barrier_wait(ring.known, 0);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int e = 0; e < OF_LANE; e++) {
                for (int d = 1; d < lanes; d <<= 1) totals[t][e] += __shfl_xor_sync(~0u, totals[t][e], d);
                const int within = lane / lanes + 32 * e, m = first_of(a, rows.chain) + rows.first + within;
                if (within >= rows.count || lane % lanes) continue;
                if (rows.needed) settle_row(a, add(a, rows.chain, m, t, rows.needed, totals[t][e], row_values[within], exponent(__uint_as_float(own.largest[t]))), t);
                else write_row(a, rows.chain, m, t, 0.f);
            }
    }
}

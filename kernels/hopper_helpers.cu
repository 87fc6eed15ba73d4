// What warps do that do not multiply: single entries, and rows that nobody adds to.

// Where the entries of a row of a sparse block begin.
__device__ inline int begin_of(const i64* line, int row, int n_rows) {
    if (row >= n_rows) return (int)line[RANK];
    return ((const int*)line[FIRST])[row >> 6] + (line[WIDTH] == 2 ? (int)((const u16*)line[U])[row] : ((const int*)line[U])[row]);
}

// The entries of up to 64 rows of a sparse block: those side by side are multiplied by lanes side by side, and what they make is
// added up from shared memory, by a lane for two rows, or by several for one where there are few. One warp.
struct Entries {
    const i64* line;
    int lanes, at[2], stop[2], here, end, columns[CHUNK / 32];
    u8 codes[CHUNK / 32];
    float size;        // what all of them are multiplied by, 2^-DOWN with it

    // As far as it goes without x.
    __device__ void begin(const Args& a, int chain, int segment, int first, int count) {
        const int n_rows = rows_of(a, chain);
        line = line_of(a, chain, segment);
        size = *(const float*)line[SCALE] * SMALLER;
        for (lanes = 1; 2 * lanes * count <= 32;) lanes *= 2;
        const int lane = (threadIdx.x & 31) / lanes;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            at[e] = begin_of(line, first + min(lane + 32 * e, count), n_rows);
            stop[e] = begin_of(line, first + min(lane + 32 * e + 1, count), n_rows);
        }
        end = begin_of(line, first + count, n_rows);
        here = __shfl_sync(~0u, at[0], 0);
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
    __device__ void load_scales(const Args& a, int chain, u32 (&out)[CHUNK / 32]) const {
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
    // What they add, times 2^-DOWN, for all tokens, by the first of the lanes of a row.
    __device__ void sum(const Args& a, int chain, float* products, float (&totals)[TOKENS][2]) {
        const int lane = threadIdx.x & 31, own_lane = lane % lanes;
        float sums[TOKENS][2] = {};
        for (; here < end; here += CHUNK) {
            u32 scales[CHUNK / 32];
            float weights[CHUNK / 32];
            load_scales(a, chain, scales);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const u16* x = a.x + (i64)t * a.columns;
                u16 raw[CHUNK / 32];
#pragma unroll
                for (int k = 0; k < CHUNK / 32; k++) raw[k] = x[columns[k]];
                if (t == 0) {
                    // Not sooner, so that scales and x are on their way together.
                    word_values(scales, a.col_type, weights);
#pragma unroll
                    for (int k = 0; k < CHUNK / 32; k++) weights[k] *= size * byte_value(codes[k]);
                }
#pragma unroll
                for (int k = 0; k < CHUNK / 32; k++) products[k * 32 + lane] = here + k * 32 + lane < end ? narrow_value(raw[k]) * weights[k] : 0.f;
                if (t == TOKENS - 1 && here + CHUNK < end) ask(here + CHUNK);
                __syncwarp();
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int last = min(stop[e], here + CHUNK) - here;
#pragma unroll 4
                    for (int i = max(at[e] - here, 0) + own_lane; i < last; i += lanes) sums[t][e] += products[i];
                }
                __syncwarp();
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                for (int d = 1; d < lanes; d <<= 1) sums[t][e] += __shfl_xor_sync(~0u, sums[t][e], d);
                totals[t][e] += sums[t][e];
            }
    }
};

// Rows of a chain that have single entries, or nothing at all, some at a time: so many that all helpers have as much to do.
struct Rows {
    int chain, first, count, needed, each;
    __device__ explicit Rows(const Args& a) {
        const int all = gridDim.x * HELPERS;
        int total = 0;
        for (chain = 0; chain < a.n_chains; chain++)
            if (wanted(a)) total += rows_of(a, chain);
        // The last piece of each chain may have less.
        const int pieces = max(all * ((total + 64 * all - 1) / (64 * all)) - a.n_chains + 1, 1);
        each = min(max((total + pieces - 1) / pieces, 1), 64);
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
__device__ inline void help(const Args& a, Shared& own, const Ring& ring, int helper) {
    const int lane = threadIdx.x & 31;
    int number = helper * gridDim.x + blockIdx.x;
    Rows rows(a);
    Entries entries;
    bool some = rows.find(a, number), begun = some && rows.needed;
    if (begun) entries.begin(a, rows.chain, counts_of(a, rows.chain)[1], rows.first, rows.count);
    wait_for_input();
    for (; some; some = rows.find(a, number += HELPERS * gridDim.x)) {
        float totals[TOKENS][2] = {};
        int lanes = 1;
        const int* counts = counts_of(a, rows.chain);
        const float2* row_values = row_values_of(a, rows.chain);
        for (int s = counts[1]; s < counts[0]; s++) {
            if (!begun) entries.begin(a, rows.chain, s, rows.first, rows.count);
            begun = false, lanes = entries.lanes;
            if (s == counts[1] && lane < rows.count) prefetch(row_values + rows.first + lane);
            entries.sum(a, rows.chain, own.products[helper], totals);
        }
        barrier_wait(ring.known, 0);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int within = lane / lanes + 32 * e, row = rows.first + within, m = first_of(a, rows.chain) + row;
                if (within >= rows.count || lane % lanes) continue;
                if (rows.needed) settle_row(a, add(a, rows.chain, m, t, rows.needed, totals[t][e], row_values[row], exponent(__uint_as_float(own.largest[t]))), t);
                else write_row(a, rows.chain, m, t, 0.f);
            }
    }
}

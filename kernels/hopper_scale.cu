// Z, and the sums of single entries.

// Transpose 32 by 32 bits: bit i of lane j becomes bit j of lane i.
__device__ inline u32 transposed(u32 word, int lane) {
    u32 mask = 0x0000ffff;
#pragma unroll
    for (int shift = 16; shift; shift >>= 1) {
        const u32 other = __shfl_xor_sync(~0u, word, shift);
        word = lane & shift ? (word & ~mask) | (other >> shift & mask) : (word & mask) | (other << shift & ~mask);
        mask ^= mask << (shift >> 1);
    }
    return word;
}

// The largest |x · col_scale| of each 256 columns of a slice, as a whole number, in which what is no number is larger than
// all others.
#define EACH (SLICE / SCALERS)
template <int TYPE> __device__ inline void load_scales(const Args& a, i64 own, int first, float (&scales)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int column = first + i * SCALERS + (int)threadIdx.x;
        scales[i] = column < a.columns ? typed_value(a.col_scale, own + column, TYPE) : 0.f;
    }
}
__device__ inline void find_largest(const Args& a, const u16* x, int first, const float (&scales)[EACH], u32* most) {
    u16 raw[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int column = first + i * SCALERS + (int)threadIdx.x;
        raw[i] = column < a.columns ? x[column] : 0;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const u32 m = __reduce_max_sync(~0u, __float_as_uint(fabsf(narrow_value(raw[i]) * scales[i])));
        if ((threadIdx.x & 31) == 0) atomicMax(&most[(i * SCALERS + threadIdx.x) / 256], m);
    }
}

// What the entries of a part of a tile of rows of a sparse block add: some lanes for a row, four entries of each at a time.
#define PART (TILE / TILE_PARTS)
#define LANES (SCALERS / PART)
__device__ inline void sum_entries(const Args& a, const i64* row, int chain, int tile, int part, int token, float* out) {
    const int lane = threadIdx.x % LANES, within = part * PART + threadIdx.x / LANES, n_rows = rows_of(a, chain);
    const int* starts = (const int*)row[FIRST];
    const int count = (int)row[RANK];
    const u16* indices = (const u16*)row[V];
    const u8* values = (const u8*)row[STRIDE];
    const i64 own = (i64)chain * a.col_stride;
    const float size = *(const float*)row[SCALE];
    const u16* x = a.x + (i64)token * a.columns;
    int at[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int r = tile * TILE + within + e;
        at[e] = r >= n_rows ? count : starts[r >> 6] + (row[WIDTH] == 2 ? (int)((const u16*)row[U])[r] : ((const int*)row[U])[r]);
    }
    float total = 0.f;
    for (int e = at[0] + lane; e < at[1]; e += 4 * LANES) {
        int columns[4];
        u8 codes[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int i = e + k * LANES;
            columns[k] = i < at[1] ? indices[i] : 0;
            codes[k] = i < at[1] ? values[i] : 0;
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (e + k * LANES < at[1]) total += narrow_value(x[columns[k]]) * typed_value(a.col_scale, own + columns[k], a.col_type) * byte_value(codes[k]);
    }
#pragma unroll
    for (int d = 1; d < LANES; d <<= 1) total += __shfl_xor_sync(~0u, total, d);
    if (lane == 0) out[within] = total * size;
}

// Nothing has been added to any tile of a chain: for `multiply`.
__device__ inline void clear_counters(const Args& a, int chain, int segment, int chunks) {
    if (segment == 0)
        for (int i = blockIdx.x * SCALERS + threadIdx.x; i < a.tiles; i += chunks * SCALERS) a.arrived[chain * a.tiles + i] = 0;
}

// Z of 128 columns of a slice for one segment of one chain: each thread has four columns of the factors at one column of W,
// and each bit of the numbers is a row of a tile, as the tensor cores read it. Programs (128 columns · segments, chain); the
// further ones add up the single entries of a tile of rows.
extern "C" __global__ void __launch_bounds__(SCALERS) scale_input(const __grid_constant__ Args a) {
    begin_next();  // `multiply`
    __shared__ u32 most[V_GROUPS];
    __shared__ float inverse[RANKS];
    __shared__ int sums[4][RANKS];
    __shared__ __align__(16) u32 bits[BITS * RANKS * 4];
    const int chunks = a.slices * PARTS, segment = blockIdx.x / chunks, chain = blockIdx.y;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, k = (thread >> 7) * 4;
    if (segment >= a.capacity) {
        const int other = blockIdx.x - chunks * a.capacity, tile = other / TILE_PARTS;
        wait_for_input();
        if (tile >= tiles_of(a, chain)) return;
        for (int s = a.counts[2 * chain + 1]; s < a.counts[2 * chain]; s++)
            for (int t = 0; t < TOKENS; t++)
                sum_entries(a, a.table + ((i64)chain * a.capacity + s) * FIELDS, chain, tile, other % TILE_PARTS, t,
                            a.partial + slot(a, chain, tile, s, 0, 0, t) * TILE);
        return;
    }
    const int chunk = blockIdx.x % chunks, slice = chunk / PARTS, part = chunk % PARTS, first = slice * SLICE;
    const int column = first + part * 128 + (thread & 127);
    const bool inside = column < a.columns;
    const i64 place = (i64)chain * a.capacity + segment, own = (i64)chain * a.col_stride;
    const i64* row = a.table + place * FIELDS;
    const bool wanted = segment < a.counts[2 * chain + 1] && row[SHARED] == segment;
    const float c = inside ? typed_value(a.col_scale, own + column, a.col_type) : 0.f;
    if (!wanted) {
        if (segment) return;
        wait_for_input();
        clear_counters(a, chain, segment, chunks);
        return;
    }
    const int width = (int)row[WIDTH], rank = (int)row[RANK], kind = (int)row[KIND];
    const bool bytes = kind == SIGN8;
    const u8* v = (const u8*)row[V];
    const i64 at = (i64)column * rank + k;
    u32 pairs[2] = {0, 0};
    if (inside && k + 4 <= width && !((u64)v & 7) && !(rank & 3)) {
        if (bytes) {
            const u32 q = *(const u32*)(v + at);
            pairs[0] = wide((u16)q), pairs[1] = wide((u16)(q >> 16));
        } else {
            const uint2 q = *(const uint2*)(v + 2 * at);
            pairs[0] = q.x, pairs[1] = q.y;
        }
    } else if (inside) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (k + i < width) pairs[i / 2] |= (u32)(bytes ? (u16)wide(v[at + i]) : ((const u16*)v)[at + i]) << 16 * (i % 2);
    }
    float v_max[V_GROUPS];
    if (thread < RANKS) {
#pragma unroll
        for (int g = 0; g < V_GROUPS; g++)
            v_max[g] = thread < width && first + g * 256 < a.columns ? ((const float*)row[V_MAX])[(first / 256 + g) * RANKS + thread] : 0.f;
    }
    u8* z = a.z + (place * a.slices + slice) * Z_ALL;
    float scales[EACH];
    if (a.col_type == 0) load_scales<0>(a, own, first, scales);
    else if (a.col_type == 1) load_scales<1>(a, own, first, scales);
    else load_scales<2>(a, own, first, scales);
    wait_for_input();
    clear_counters(a, chain, segment, chunks);
    for (int t = 0; t < TOKENS; t++) {
        const u16* x = a.x + (i64)t * a.columns;
        const float xc = inside ? narrow_value(x[column]) * c : 0.f;
        if (thread < V_GROUPS) most[thread] = 0;
        if (thread < 4 * RANKS) sums[thread / RANKS][thread % RANKS] = 0;
        __syncthreads();
        find_largest(a, x, first, scales, most);
        __syncthreads();
        if (thread < RANKS) {
            float bound = 0;
            bool odd = false;
#pragma unroll
            for (int g = 0; g < V_GROUPS; g++) {
                const float b = __uint_as_float(most[g]) * v_max[g];
                odd |= !(b < __uint_as_float(0x7f800000u));
                bound = fmaxf(bound, b);
            }
            const bool some = bound > 1e-30f && !odd;
            inverse[thread] = some ? TOP / bound : 0.f;
            if (part == 0) ((float*)(z + Z_BYTES))[t * RANKS + thread] = odd ? __uint_as_float(0x7fc00000u) : some ? bound / TOP : 0.f;
        }
        __syncthreads();
        int numbers[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // Not a number becomes zero; the step says what it was.
            const float value = half_value((u16)(pairs[i / 2] >> 16 * (i % 2))) * xc * inverse[k + i];
            numbers[i] = __float2int_rn(fminf(fmaxf(value, -TOP), TOP));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int sum = __reduce_add_sync(~0u, numbers[i]);
            if (lane == i) sums[warp & 3][k + i] = sum;
        }
        const int bit = lane & 15;
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const u32 word = transposed(__byte_perm(numbers[2 * p], numbers[2 * p + 1], 0x5410), lane);
            if (bit < BITS) bits[(bit * RANKS + k + 2 * p + (lane >> 4)) * 4 + (warp & 3)] = word;
        }
        __syncthreads();
        for (int n = thread; n < BITS * RANKS; n += SCALERS) {
            const int b = n / RANKS, r = n % RANKS;
            u8* to = z + part / 8 * Z_HALF + (t * GROUPS + r / 8) * Z_TILE;
            *(uint4*)(to + (b * 8 + r % 8) * 128 + (part % 8 * 16 ^ (r & 7) << 4)) = ((const uint4*)bits)[n];
        }
        if (thread < RANKS)
            ((int*)(z + Z_BYTES))[TOKENS * RANKS + (part * TOKENS + t) * RANKS + thread] = sums[0][thread] + sums[1][thread] + sums[2][thread] + sums[3][thread];
        __syncthreads();
    }
}

// Z of a slice of columns for one segment: whole numbers, of which each bit of each column of V is a row of a tile, as the
// tensor cores read it: 1024 columns of W in 128 bytes, swizzled. A column r of V is row r / GROUPS of product r % GROUPS.
//
// A warp makes it for 128 columns of W. A lane has columns of V, GROUPS of them, and 32 columns of W, which are the bits of a word.
#define V_BYTES (2 * RANKS)          // of a column of W
#define V_PART (4 * 33 * V_BYTES)    // of 128 columns, with room after each 32 against conflicts
#define PIECES (V_BYTES / 16)
// A step is a power of two; 1.5·2^23 steps, added to a number, make its lower bits the number in steps.
#define LEAST_STEP (BITS - 1)        // as the upper bits of a bound
#define MOST_STEP (229 + BITS)       // beyond it the sum is no number
__device__ inline u32 v_place(int column) { return ((column >> 5) * 33 + (column & 31)) * V_BYTES; }

// Where the float8 of 32 columns of W are, as they are in the memory, before those of the next 32.
__device__ inline u32 bytes_place(int block, int rank) { return block * (32 * rank + 16); }

// V of 128 columns from `first` on comes to shared memory, zeros where there is none: as float16, or, as it then says, as the float8 that it is.
// One warp; `await_copies` follows.
__device__ inline bool bring_v(const Args& a, const i64* row, int first, u32 to) {
    const int lane = threadIdx.x & 31, rank = (int)row[RANK], width = (int)row[WIDTH], there = a.columns - first;
    const bool bytes = (int)row[KIND] == SIGN8;
    const u8* v = (const u8*)row[V] + (i64)first * rank * (bytes ? 1 : 2);
    if (rank == RANKS && !bytes && !((u64)v & 15)) {
#pragma unroll
        for (int i = 0; i < 4 * PIECES; i++) {
            const int piece = i * 32 + lane, column = piece / PIECES;
            copy_16(to + v_place(column) + piece % PIECES * 16, v + piece * 16, column < there ? 16 : 0);
        }
    } else if (TOKENS == 1 && bytes && rank == width && rank % GROUPS == 0 && !((u64)v & 15)) {
        // Of several tokens it would be converted for each.
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int at = b * 32 * rank + lane * 16;
            if (lane < 2 * rank) copy_16(to + bytes_place(b, rank) + lane * 16, v + at, min(max(there * rank - at, 0), 16));
        }
        return true;
    } else if (TOKENS > 1 && rank == RANKS && bytes && !((u64)v & (RANKS - 1))) {
        uint2 raw[4][PIECES];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                const int column = i * 32 + lane;
                raw[i][p] = column < there ? ((const uint2*)(v + column * RANKS))[p] : uint2{0, 0};
            }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                const uint2 q = raw[i][p];
                set_shared_words(to + v_place(i * 32 + lane) + p * 16, wide((u16)q.x), wide((u16)(q.x >> 16)), wide((u16)q.y), wide((u16)(q.y >> 16)));
            }
    } else {
        for (int r = 0; r < RANKS; r += 2) {
            u32 pair[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = i * 32 + lane;
                const bool inside = column < there;
                pair[i] = load_pair(v + ((i64)column * rank + r) * (bytes ? 1 : 2), bytes ? 1 : 2, bytes, inside && r < width, inside && r + 1 < width);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) set_shared_word(to + v_place(i * 32 + lane) + 2 * r, pair[i]);
        }
    }
    return false;
}

// Four columns of x, or what there is of them.
__device__ inline uint2 load_x(const u16* x, int there) {
    uint2 q = {0, 0};
    if (there >= 4 && !((u64)x & 7)) return *(const uint2*)x;
    if (there > 0) q.x = x[0];
    if (there > 1) q.x |= (u32)x[1] << 16;
    if (there > 2) q.y = x[2];
    if (there > 3) q.y |= (u32)x[3] << 16;
    return q;
}

// The largest |x| of a token that a thread of all consumers sees, two at a time as bits: all of them see all columns. It is found in two
// steps, so that what these ask for comes while something else is done.
struct Largest {
    uint4 raw[2];
    u32 most;
    const u16* x;
    int pieces;
    __device__ void ask(const Args& a, int token, bool wanted) {
        most = 0, x = a.x + (i64)token * a.columns, pieces = wanted && !((u64)x & 15) ? a.columns / 8 : 0;
        ask_from(0);
    }
    __device__ void ask_from(int first) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int piece = first + i * 32 * WARPS + (int)threadIdx.x;
            raw[i] = load_words(x + piece * 8, piece < pieces);
        }
    }
    __device__ void see(const uint4& q) {
        most = largest_pair(largest_pair(most, largest_pair(q.x & 0x7fff7fff, q.y & 0x7fff7fff)), largest_pair(q.z & 0x7fff7fff, q.w & 0x7fff7fff));
    }
    __device__ void ask_for_rest() {
        see(raw[0]);
        if (pieces <= 32 * WARPS) return;
        see(raw[1]);
        ask_from(2 * 32 * WARPS);
    }
    __device__ void find_rest(const Args& a, bool wanted) {
        if (pieces > 2 * 32 * WARPS) {
            see(raw[0]), see(raw[1]);
#pragma unroll 1
            for (int i = threadIdx.x + 4 * 32 * WARPS; i < pieces; i += 32 * WARPS) see(load_words(x + i * 8, true));
        }
        if (wanted && pieces * 8 != a.columns)
#pragma unroll 1
            for (int i = pieces * 8 + threadIdx.x; i < a.columns; i += 32 * WARPS) most = largest_pair(most, x[i] & 0x7fff);
    }
};
// Tell it of a token; once that is done for all, `tell_known`.
__device__ inline void tell_largest(Shared& own, u32 largest, int token) {
    const u32 all = __reduce_max_sync(~0u, __float_as_uint(narrow_value((u16)max(largest & 0xffff, largest >> 16))));
    if ((threadIdx.x & 31) == 0) atomicMax(&own.largest[token], all);
}
__device__ inline void tell_known(const Ring& ring) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(ring.known);
}

// The same where there is nothing to multiply.
__device__ inline void look_for_largest(const Args& a, Shared& own, const Ring& ring) {
    wait_for_input();
#pragma unroll 1
    for (int t = 0; t < TOKENS; t++) {
        Largest largest;
        largest.ask(a, t, true), largest.ask_for_rest(), largest.find_rest(a, true);
        tell_largest(own, largest.most, t);
    }
    fence_proxies();
    tell_known(ring);
}

// Words i and i + APART of 16 exchange what belongs to each other: one step of transposing 16 by 16 bits, twice beside each other.
template <int APART> __device__ inline void exchange(u32 (&words)[16]) {
    constexpr u32 mask = APART == 4 ? 0x0f0f0f0f : APART == 2 ? 0x33333333 : 0x55555555;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        if (i & APART) continue;
        const u32 low = words[i], high = words[i + APART];
        if (APART == 8) words[i] = __byte_perm(low, high, 0x6240), words[i + 8] = __byte_perm(low, high, 0x7351);
        else words[i] = chosen(low, high << APART, mask), words[i + APART] = chosen(low >> APART, high, mask);
    }
}

// The step of each column of V, from the largest of x·col_scale and of V, of each 256 columns: every warp for itself. Gives what column
// lane % RANKS adds to a number.
__device__ inline float find_steps(Shared& own, int token, int warp) {
    constexpr int parts = 32 / RANKS, each = WARPS / parts;
    const int lane = threadIdx.x & 31, r = lane % RANKS, first = lane / RANKS * each;
    u32 bits = 0;
    // As bits, what is no number is larger than all others.
#pragma unroll
    for (int i = 0; i < each; i++) bits = max(bits, __float_as_uint(fabsf(__uint_as_float(own.most[token][first + i]) * own.v_max[(first + i) / 2][r])));
#pragma unroll
    for (int step = RANKS; step < 32; step *= 2) bits = max(bits, __shfl_xor_sync(~0u, bits, step));
    // So that what is just below a power of two is not rounded up to it.
    const u32 size = max(bits + (1 << 11) >> 23, (u32)LEAST_STEP);
    if (warp == 0 && lane < RANKS) own.step[token][r] = __uint_as_float(size > MOST_STEP ? 0x7fc00000u : size + 2 - BITS << 23);
    return __uint_as_float(size + 25 - BITS << 23 | 1 << 22);
}

// Of a column of W, the columns of V that a lane has.
__device__ inline u32 own_v(u32 from, int column) { return GROUPS == 2 ? shared_word(from + column * V_BYTES) : shared_short(from + column * V_BYTES); }

// All consumers together. The first time of a launch it waits for what was launched before, once V is on its way.
__device__ inline void make_z(const Args& a, Shared& own, const Ring& ring, const Unit& unit, u8* z, bool again) {
    const int thread = threadIdx.x, lane = thread & 31, warp = warp_number(), block = lane >> 3, q = lane & 7;
    const i64* row = unit.row(a);
    const int slice = unit.slice * SLICE, first = slice + warp * 128, column = first + lane * 4;
    if (again) await_makers();  // nobody multiplies by what was there before
    const u32 part = shared_address(z + (TOKENS - 1) * Z_TOKEN) + warp * V_PART;
    const bool bytes = bring_v(a, row, first, part);
    if (!again) arrive_copied(ring.v_here);
    u32 scales[4] = {0, 0, 0, 0};
    load_four(matrix_of(a, unit.chain).col_scale, scales_of(a, unit.chain) + column, a.columns - column, a.col_type, scales);
    if (thread < V_GROUPS * RANKS) {
        const int group = thread / RANKS, r = thread % RANKS;
        const bool there = r < (int)row[WIDTH] && slice + group * 256 < a.columns;
        own.v_max[group][r] = there ? ((const float*)row[V_MAX])[(slice / 256 + group) * RANKS + r] : 0.f;
    }
    if (thread < TOKENS * RANKS) own.z_sums[thread / RANKS][thread % RANKS] = 0;
    float across[4];
    word_values(scales, a.col_type, across);
#pragma unroll
    for (int i = 0; i < 4; i++) across[i] *= SMALLER;
    await_copies();
    __syncwarp();
    // Of one token V waits for x in registers; for more there are too few.
    const u32 from = part + v_place(block * 32) + q * 2 * GROUPS;
    u32 v[32];
    if (TOKENS == 1 && bytes) {
        const int rank = (int)row[RANK];
        const u32 own_bytes = part + bytes_place(block, rank) + q * GROUPS;
#pragma unroll
        for (int i = 0; i < 32; i++) v[i] = q * GROUPS >= rank ? 0 : GROUPS == 2 ? shared_short(own_bytes + i * rank) : shared_byte(own_bytes + i * rank);
#pragma unroll
        for (int i = 0; i < 32; i++) v[i] = wide((u16)v[i]);
    } else if (TOKENS == 1) {
#pragma unroll
        for (int i = 0; i < 32; i++) v[i] = own_v(from, i);
    }
    wait_for_input();
#pragma unroll 1
    for (int t = 0; t < TOKENS; t++) {
        Largest largest;
        largest.ask(a, t, !again);
        const uint2 x = load_x(a.x + (i64)t * a.columns + column, a.columns - column);
        float values[4] = {narrow_value((u16)x.x), narrow_value((u16)(x.x >> 16)), narrow_value((u16)x.y), narrow_value((u16)(x.y >> 16))};
        u32 most = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            values[i] *= across[i];
            most = max(most, __float_as_uint(fabsf(values[i])));
        }
        most = __reduce_max_sync(~0u, most);
        if (lane == 0) own.most[t][warp] = most;
        __syncwarp();
        *(float4*)&own.xc[warp][block][q * 4] = float4{values[0], values[1], values[2], values[3]};
        largest.ask_for_rest();
        await_makers();
        const float steps = find_steps(own, t, warp);
        largest.find_rest(a, !again);
        u32 words[GROUPS][16];
        int sums[GROUPS];
        float magic[GROUPS];
#pragma unroll
        for (int j = 0; j < GROUPS; j++) sums[j] = 0, magic[j] = __int_as_float(__shfl_sync(~0u, __float_as_int(steps), q * GROUPS + j));
        // Columns i and i + 16 in the halves of a word.
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            const float4 low = *(const float4*)&own.xc[warp][block][i], high = *(const float4*)&own.xc[warp][block][i + 16];
            const float xc[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (TOKENS > 1) v[i + e] = own_v(from, i + e), v[i + e + 16] = own_v(from, i + e + 16);
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    u32 numbers[2];
#pragma unroll
                    for (int h = 0; h < 2; h++) numbers[h] = __float_as_uint(fmaf(half_value((u16)(v[i + e + 16 * h] >> 16 * j)), xc[h][e], magic[j]));
                    words[j][i + e] = __byte_perm(numbers[0], numbers[1], 0x5410);
                    sums[j] = halves_and(words[j][i + e], sums[j]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            int sum = sums[j];
            sum += (int)__shfl_xor_sync(~0u, (u32)sum, 8);
            sum += (int)__shfl_xor_sync(~0u, (u32)sum, 16);
            if (block == 0) atomicAdd(&own.z_sums[t][q * GROUPS + j], sum);
        }
        if (!again) tell_largest(own, largest.most, t);
        if (TOKENS > 1 && t == TOKENS - 1) await_makers();  // its Z takes the place of V
        u32 to = shared_address(z + t * Z_TOKEN) + warp / 8 * (GROUPS * Z_TILE) + q * 128 + ((warp % 8 ^ q) << 4) + block * 4;
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            exchange<8>(words[j]), exchange<4>(words[j]), exchange<2>(words[j]), exchange<1>(words[j]);
#pragma unroll
            for (int b = 0; b < BITS; b++) set_shared_word(to + j * Z_TILE + b * 1024, words[j][b]);
        }
    }
    fence_proxies();
    if (!again) tell_known(ring);
    await_makers();
}

// Z of a slice of columns for one segment: whole numbers, of which each bit of each column of V is a row of a tile, as the
// tensor cores read it: 1024 columns of W in 128 bytes, swizzled. A column r of V is row r / GROUPS of product r % GROUPS.
//
// A warp makes it for 128 columns of W. A lane has columns of V, GROUPS of them, and 32 columns of W, which are the bits of a word.
#define V_BYTES (2 * RANKS)          // of a column of W
#define V_PART (4 * 33 * V_BYTES)    // of 128 columns, with room after each 32 against conflicts
#define PIECES (V_BYTES / 16)
#define MAGIC 12582912.f             // added to a number, it makes its lower bits the whole number
__device__ inline u32 v_place(int column) { return ((column >> 5) * 33 + (column & 31)) * V_BYTES; }

// V of 128 columns from `first` on comes to shared memory as float16, zeros where there is none. One warp; `await_copies` follows.
__device__ inline void bring_v(const Args& a, const i64* row, int first, u32 to) {
    const int lane = threadIdx.x & 31, rank = (int)row[RANK], width = (int)row[WIDTH], there = a.columns - first;
    const bool bytes = (int)row[KIND] == SIGN8;
    const u8* v = (const u8*)row[V] + (i64)first * rank * (bytes ? 1 : 2);
    if (rank == RANKS && !bytes && !((u64)v & 15)) {
#pragma unroll
        for (int i = 0; i < 4 * PIECES; i++) {
            const int piece = i * 32 + lane, column = piece / PIECES;
            copy_16(to + v_place(column) + piece % PIECES * 16, v + piece * 16, column < there ? 16 : 0);
        }
    } else if (rank == RANKS && bytes && !((u64)v & (RANKS - 1))) {
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

// The largest |x| of each token that a thread of all consumers sees, two at a time as bits: all of them see all columns.
__device__ inline void find_largest(const Args& a, u32 (&largest)[TOKENS]) {
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const u16* x = a.x + (i64)t * a.columns;
        const int pieces = (u64)x & 15 ? 0 : a.columns / 8;
        u32 most = 0;
#pragma unroll 4
        for (int i = threadIdx.x; i < pieces; i += 32 * WARPS) {
            const uint4 q = ((const uint4*)x)[i];
            most = largest_pair(largest_pair(most, q.x & 0x7fff7fff), q.y & 0x7fff7fff);
            most = largest_pair(largest_pair(most, q.z & 0x7fff7fff), q.w & 0x7fff7fff);
        }
        for (int i = pieces * 8 + threadIdx.x; i < a.columns; i += 32 * WARPS) most = largest_pair(most, x[i] & 0x7fff);
        largest[t] = most;
    }
}
// Tell it; `ring.known` says that all have.
__device__ inline void tell_largest(Shared& own, const Ring& ring, const u32 (&largest)[TOKENS]) {
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const u32 all = __reduce_max_sync(~0u, __float_as_uint(narrow_value((u16)max(largest[t] & 0xffff, largest[t] >> 16))));
        if ((threadIdx.x & 31) == 0) atomicMax(&own.largest[t], all);
    }
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(ring.known);
}

// The same where there is nothing to multiply.
__device__ inline void look_for_largest(const Args& a, Shared& own, const Ring& ring) {
    u32 largest[TOKENS];
    wait_for_input();
    find_largest(a, largest);
    tell_largest(own, ring, largest);
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

// The step of each column of V, from the largest of x·col_scale and of V, of each 256 columns: every warp for itself. Gives the inverse
// of that of column lane % RANKS.
__device__ inline float find_steps(Shared& own, int token, int warp) {
    constexpr int parts = 32 / RANKS, each = WARPS / parts;
    const int lane = threadIdx.x & 31, r = lane % RANKS, first = lane / RANKS * each;
    u32 bits = 0;
    // As bits, what is no number is larger than all others.
#pragma unroll
    for (int i = 0; i < each; i++) bits = max(bits, __float_as_uint(fabsf(__uint_as_float(own.most[token][first + i]) * own.v_max[(first + i) / 2][r])));
#pragma unroll
    for (int step = RANKS; step < 32; step *= 2) bits = max(bits, __shfl_xor_sync(~0u, bits, step));
    const float bound = __uint_as_float(bits);
    // Beyond 2^126 a fast division gives 0; below the least, its result is not finite.
    const bool odd = bits > 0x7e800000, some = !odd && bound > 1e-33f;
    if (warp == 0 && lane < RANKS) own.step[token][r] = odd ? __uint_as_float(0x7fc00000u) : some ? bound * (1 / TOP) : 0.f;
    return some ? __fdividef(TOP, bound) : 0.f;
}

// All consumers together. The first time of a launch it waits for what was launched before, once V is on its way.
__device__ inline void make_z(const Args& a, Shared& own, const Ring& ring, const Unit& unit, u8* z, bool again) {
    const int thread = threadIdx.x, lane = thread & 31, warp = warp_number(), block = lane >> 3, q = lane & 7;
    const i64* row = unit.row(a);
    const int slice = unit.slice * SLICE, first = slice + warp * 128, column = first + lane * 4;
    if (again) await_makers();  // nobody multiplies by what was there before
    const u32 part = shared_address(z + (TOKENS - 1) * Z_TOKEN) + warp * V_PART;
    bring_v(a, row, first, part);
    if (!again) arrive_copied(ring.v_here);
    u32 scales[4] = {0, 0, 0, 0};
    load_four(a.col_scale, (i64)unit.chain * a.col_stride + column, a.columns - column, a.col_type, scales);
    float largest = 0.f;
    if (const int group = thread / RANKS, r = thread % RANKS; group < V_GROUPS && r < (int)row[WIDTH] && slice + group * 256 < a.columns)
        largest = ((const float*)row[V_MAX])[(slice / 256 + group) * RANKS + r];
    if (thread < TOKENS * RANKS) own.z_sums[thread / RANKS][thread % RANKS] = 0;
    u32 largest_x[TOKENS];
    wait_for_input();
    for (int t = 0; t < TOKENS; t++) {
        const uint2 x = load_x(a.x + (i64)t * a.columns + column, a.columns - column);
        if (t == 0 && !again) find_largest(a, largest_x);  // while that comes
        float values[4] = {narrow_value((u16)x.x), narrow_value((u16)(x.x >> 16)), narrow_value((u16)x.y), narrow_value((u16)(x.y >> 16))};
        if (t == 0 && thread < V_GROUPS * RANKS) own.v_max[thread / RANKS][thread % RANKS] = largest;
        u32 most = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            values[i] *= word_value(scales[i], a.col_type) * SMALLER;
            most = max(most, __float_as_uint(fabsf(values[i])));
        }
        most = __reduce_max_sync(~0u, most);
        if (lane == 0) own.most[t][warp] = most;
        __syncwarp();
        *(float4*)&own.xc[warp][block][q * 4] = float4{values[0], values[1], values[2], values[3]};
        if (t == 0) await_copies();
        await_makers();
        const float steps = find_steps(own, t, warp);
        u32 words[GROUPS][16];
        int sums[GROUPS];
        float inverse[GROUPS];
#pragma unroll
        for (int j = 0; j < GROUPS; j++) sums[j] = 0, inverse[j] = __int_as_float(__shfl_sync(~0u, __float_as_int(steps), q * GROUPS + j));
        const u32 from = part + v_place(block * 32) + q * 2 * GROUPS;
        // Columns i and i + 16 in the halves of a word.
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            const float4 low = *(const float4*)&own.xc[warp][block][i], high = *(const float4*)&own.xc[warp][block][i + 16];
            const float xc[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 v[2];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 at = from + (i + e + 16 * h) * V_BYTES;
                    v[h] = GROUPS == 2 ? shared_word(at) : shared_short(at);
                }
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    u32 numbers[2];
#pragma unroll
                    for (int h = 0; h < 2; h++) numbers[h] = __float_as_uint(fmaf(half_value((u16)(v[h] >> 16 * j)) * xc[h][e], inverse[j], MAGIC));
                    sums[j] += numbers[0] + numbers[1];
                    words[j][i + e] = __byte_perm(numbers[0], numbers[1], 0x5410);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            int sum = sums[j] - 32 * (int)__float_as_uint(MAGIC);
            sum += (int)__shfl_xor_sync(~0u, (u32)sum, 8);
            sum += (int)__shfl_xor_sync(~0u, (u32)sum, 16);
            if (block == 0) atomicAdd(&own.z_sums[t][q * GROUPS + j], sum);
        }
        // The last token's Z takes the place of V.
        if (t == TOKENS - 1) await_makers();
        u32 to = shared_address(z + t * Z_TOKEN) + warp / 8 * (GROUPS * Z_TILE) + q * 128 + ((warp % 8 ^ q) << 4) + block * 4;
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            exchange<8>(words[j]), exchange<4>(words[j]), exchange<2>(words[j]), exchange<1>(words[j]);
#pragma unroll
            for (int b = 0; b < BITS; b++) set_shared_word(to + j * Z_TILE + b * 1024, words[j][b]);
        }
    }
    show_stores();
    if (!again) tell_largest(own, ring, largest_x);
    await_makers();
}

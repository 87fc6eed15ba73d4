// A tile of W, but for single entries, in the registers of a program: 128 rows and 128 columns.
//
// A few segments at a time are brought to shared memory: U, multiplied by its scale, V and the signs. Tensor cores multiply U and
// V in half precision with float32 sums; each product, turned by its sign, is added to the sum of its number. Which column of V is
// which column of a product is free: so that the eight numbers that a thread has of a row lie side by side, and share a byte of signs.
//
// After `hopper_values.cu`; wants SIGN8 and the fields of a row of the table.
#define SIDE 128               // rows and columns of a tile
#define WIDTH_MOST 16          // columns of the factors of a segment
#define AT_A_TIME 4            // segments
#define LINE 32                // bytes of a row of U or V in shared memory
#define THREADS (2 * SIDE)

struct Matrix {
    const void* row_scale;
    const void* col_scale;
    const i64* table;
    const int* counts;
    int rows, chain_rows, columns, col_stride, capacity;
    int row_type, col_type;
};

struct Tile {
    u8 factors[AT_A_TIME][2 * SIDE * LINE];  // U, then V, each line's two halves where `half_at` says
    uint2 signs[AT_A_TIME][SIDE][2];
    __align__(4) u16 sizes[AT_A_TIME][WIDTH_MOST];        // what U is multiplied by, of the largest one, which is in `units`; half precision
    float units[AT_A_TIME];
    float across[SIDE], down[SIDE];          // the scales
};

// Where a thread's numbers are: of a tile a warp has 32 rows and 64 columns, of these a thread four rows, and eight columns in each
// 32. `sum` has them by 16 rows, 32 columns, pair of the eight; then both of the pair, and those eight rows further down.
struct Where {
    int row, column;
    __device__ Where() {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        row = (warp >> 1) * 32 + (lane >> 2), column = (warp & 1) * 64 + (lane & 3) * 8;
    }
};
typedef float Sum[2][2][4][4];

// Eight lines' halves lie in different banks.
__device__ inline int half_at(int line, int half) { return line * LINE + 16 * (half ^ (line >> 2 & 1)); }
__device__ inline u32 half_pair(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ inline u32 half_times(u32 left, u32 right) {
    u32 both;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(both) : "r"(left), "r"(right));
    return both;
}
__device__ inline void load_matrices(u32 from, u32 (&out)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from) : "memory");
}
__device__ inline void product(const u32 (&left)[4], u32 right0, u32 right1, float (&out)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};" : "=f"(out[0]), "=f"(out[1]), "=f"(out[2]), "=f"(out[3]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1), "f"(0.f));
}

// The column of a tile whose factors lie in a line.
__device__ inline int column_of(int line) {
    const int n = line & 7, j = line >> 3 & 3;
    return (line & ~31) + 8 * (n >> 1) + 2 * j + (n & 1);
}

// Rows of U or V of a segment, where they are stored.
struct Lines {
    const u8* first;
    i64 stride;
    int width;
    bool bytes;
    __device__ Lines(const i64* row, int field) {
        bytes = row[KIND] == SIGN8, width = (int)row[WIDTH];
        first = (const u8*)row[field], stride = row[RANK] * (bytes ? 1 : 2);
    }
    __device__ int size() const { return bytes ? width : 2 * width; }
    // Whether they can be loaded by 16 bytes, or by 8, which are all.
    __device__ bool is_even() const {
        const u64 all = (u64)first | (u64)stride | (u64)size();
        return !(all & 15) || (!(all & 7) && size() == 8);
    }
    // A line as it is stored.
    __device__ void load(int at, uint4 (&out)[2]) const {
        const u8* from = first + at * stride;
        if (size() == 8) {
            const uint2 two = __ldg((const uint2*)from);
            out[0].x = two.x, out[0].y = two.y;
        } else {
            out[0] = __ldg((const uint4*)from);
            if (size() > 16) out[1] = __ldg((const uint4*)(from + 16));
        }
    }
    __device__ float value(int at, int k) const {
        const u8* from = first + at * stride;
        return bytes ? byte_value(__ldg(from + k)) : half_value(__ldg((const u16*)from + k));
    }
};

// The line as half precision, times `sizes` where there are any.
__device__ inline void store_line(u8* to, int line, const uint4 (&raw)[2], bool bytes, const u16* sizes) {
    const u32 words[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
    u32 pairs[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        pairs[i] = bytes ? wide((u16)(words[i >> 1] >> 16 * (i & 1))) : words[i];
        if (sizes) pairs[i] = half_times(pairs[i], ((const u32*)sizes)[i]);
    }
    *(uint4*)(to + half_at(line, 0)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    *(uint4*)(to + half_at(line, 1)) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

// What U of a segment is multiplied by. One warp.
__device__ inline void find_sizes(Tile& here, int s, const i64* row) {
    const int lane = threadIdx.x & 31;
    float size = 0.f;
    if (lane < (int)row[WIDTH]) {
        const float* scale = (const float*)row[SCALE];
        size = __int_as_float((int)row[GAIN]) * (scale ? scale[lane] : 1.f);
    }
    float unit = fabsf(size);
#pragma unroll
    for (int step = 8; step; step >>= 1) unit = fmaxf(unit, __shfl_xor_sync(0xffffffffu, unit, step));
    if (lane < WIDTH_MOST) here.sizes[s][lane] = (u16)half_pair(unit > 0.f ? size / unit : size, 0.f);
    if (lane == 0) here.units[s] = unit;
}

// Bring the scales of the tile at row0 and col0 of a chain; rows end at stop_row. They are there after the next barrier.
__device__ inline void bring_scales(const Matrix& a, Tile& here, int chain, int row0, int stop_row, int col0) {
    const int line = threadIdx.x & (SIDE - 1), row = row0 + line, column = col0 + line;
    if (threadIdx.x < SIDE) here.down[line] = row < stop_row ? typed_value(a.row_scale, (i64)chain * a.chain_rows + row, a.row_type) : 0.f;
    else here.across[line] = column < a.columns ? typed_value(a.col_scale, (i64)chain * a.col_stride + column, a.col_type) : 0.f;
}

// Bring some segments, from the first one on. All threads; ends with a barrier.
__device__ inline void bring_segments(const Matrix& a, Tile& here, const i64* first, int count, int row0, int stop_row, int col0) {
    // Half of the threads bring rows of U, and half lines of V.
    const int thread = threadIdx.x, line = thread & (SIDE - 1);
    const bool is_u = thread < SIDE;
    const int at = is_u ? row0 + line : col0 + column_of(line);
    const bool inside = is_u ? at < stop_row : at < a.columns;
    if (thread >> 5 < count) find_sizes(here, thread >> 5, first + (thread >> 5) * FIELDS);
    uint4 raw[AT_A_TIME][2];
#pragma unroll
    for (int s = 0; s < AT_A_TIME; s++) {
        raw[s][0] = raw[s][1] = make_uint4(0, 0, 0, 0);
        if (s >= count) continue;
        const i64* row = first + s * FIELDS;
        const Lines lines(row, is_u ? U : V);
        if (inside && lines.is_even()) lines.load(at, raw[s]);
        const int sign_row = min(row0 + (thread >> 1), stop_row - 1);
        here.signs[s][thread >> 1][thread & 1] = __ldg((const uint2*)((const u8*)row[FIRST] + sign_row * row[STRIDE] + col0 / 8 + 8 * (thread & 1)));
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < AT_A_TIME; s++) {
        if (s >= count) continue;
        store_line(here.factors[s] + (is_u ? 0 : SIDE * LINE), line, raw[s], first[s * FIELDS + KIND] == SIGN8, is_u ? here.sizes[s] : nullptr);
    }
    for (int s = 0; s < count; s++) {
        const Lines lines(first + s * FIELDS, is_u ? U : V);
        if (!inside || lines.is_even()) continue;
        u16* to = (u16*)(here.factors[s] + (is_u ? 0 : SIDE * LINE));
#pragma unroll 1
        for (int k = 0; k < lines.width; k++)
            to[half_at(line, k >> 3) / 2 + (k & 7)] = (u16)half_pair(lines.value(at, k) * (is_u ? half_value(here.sizes[s][k]) : 1.f), 0.f);
    }
    __syncthreads();
}

// Add a segment that was brought.
__device__ inline void add_segment(const Tile& here, int s, Sum& sum) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row_w = (warp >> 1) * 32, col_w = (warp & 1) * 64;
    const float unit = here.units[s];
    const u32 us = shared_address(here.factors[s]), vs = us + SIDE * LINE;
    u32 left[2][4];
#pragma unroll
    for (int m = 0; m < 2; m++) load_matrices(us + half_at(row_w + m * 16 + (lane & 15), lane >> 4), left[m]);
    uint2 signs[4];
#pragma unroll
    for (int r = 0; r < 4; r++) signs[r] = here.signs[s][row_w + r * 8 + (lane >> 2)][warp & 1];
#pragma unroll
    for (int word = 0; word < 2; word++) {
        u32 bits[4];  // the byte of the thread on top
#pragma unroll
        for (int r = 0; r < 4; r++) bits[r] = (word ? signs[r].y : signs[r].x) << (24 - 8 * (lane & 3));
#pragma unroll
        for (int two = 0; two < 2; two++) {
            u32 right[4];
            load_matrices(vs + half_at(col_w + word * 32 + two * 16 + (lane >> 4) * 8 + (lane & 7), lane >> 3 & 1), right);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int one = 0; one < 2; one++) {
                    const int j = 2 * two + one;
                    float made[4];
                    product(left[m], right[2 * one], right[2 * one + 1], made);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const u32 turned = __float_as_uint(made[i]) ^ (~(bits[2 * m + (i >> 1)] << (7 - 2 * j - (i & 1))) & 0x80000000u);
                        sum[m][word][j][i] += unit * __uint_as_float(turned);
                    }
                }
        }
    }
}

// All segments of a tile, without the scales, which are there afterwards too. Nobody may still use `here` of another tile.
__device__ inline void make_tile(const Matrix& a, Tile& here, int chain, int row0, int stop_row, int col0, Sum& sum) {
    const i64* table = a.table + (i64)chain * a.capacity * FIELDS;
    const int segments = a.counts[2 * chain + 1];
#pragma unroll
    for (int i = 0; i < 64; i++) sum[i >> 5][i >> 4 & 1][i >> 2 & 3][i & 3] = 0.f;
    bring_scales(a, here, chain, row0, stop_row, col0);
    if (!segments) __syncthreads();
    for (int s0 = 0; s0 < segments; s0 += AT_A_TIME) {
        const int count = min(AT_A_TIME, segments - s0);
        if (s0) __syncthreads();
        bring_segments(a, here, table + (i64)s0 * FIELDS, count, row0, stop_row, col0);
        for (int s = 0; s < count; s++) add_segment(here, s, sum);
    }
}

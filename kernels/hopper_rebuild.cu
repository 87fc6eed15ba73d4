// W of a table, but for single entries, in float16 or bfloat16.
//
// A program makes a tile of 128 rows and 128 columns, a few segments at a time: it brings U, multiplied by its scale, V and the
// signs to shared memory; tensor cores multiply U and V in half precision with float32 sums, and each product, turned by its sign,
// is added to the sum of its number in a register. Which column of V is which column of a product is free: so that the
// eight numbers of a thread and a row lie side by side, and have one byte of signs.
//
// `hopper_rebuild.py` prepends BFLOAT, SIGN8, the fields of a row of the table, and `hopper_values.cu`.
#define SIDE 128               // rows and columns of a tile
#define WIDTH_MOST 16          // columns of the factors of a segment
#define AT_A_TIME 4            // segments
#define LINE 32                // bytes of a row of U or V in shared memory
#define THREADS (2 * SIDE)

struct RebuildArgs {
    const void* row_scale;
    const void* col_scale;
    const i64* table;
    const int* counts;
    u16* w;
    int first_row, stop_row, rows, chain_rows, columns, col_stride, capacity;
    int row_type, col_type;
};

struct Segments {
    u8 factors[AT_A_TIME][2 * SIDE * LINE];  // U, then V, each line's two halves where `half_at` says
    uint2 signs[AT_A_TIME][SIDE][2];
    float sizes[AT_A_TIME][WIDTH_MOST];      // what U is multiplied by, of the largest one, which is in `units`
    float units[AT_A_TIME];
    float across[SIDE], down[SIDE];
};

// Eight lines' halves lie in different banks.
__device__ inline int half_at(int line, int half) { return line * LINE + 16 * (half ^ (line >> 2 & 1)); }
__device__ inline u32 half_pair(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ inline void load_matrices(u32 from, u32 (&out)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from) : "memory");
}
__device__ inline void product(const u32 (&left)[4], u32 right0, u32 right1, float (&out)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};" : "=f"(out[0]), "=f"(out[1]), "=f"(out[2]), "=f"(out[3]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1), "f"(0.f));
}

// The column of a tile whose factors lie in a line: bit by bit, word of 32 columns, tile of a product, column of that.
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
    // A line as it is stored, zeros past its width.
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
__device__ inline void store_line(u8* to, int line, const uint4 (&raw)[2], bool bytes, const float* sizes) {
    const u32 words[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
    u32 pairs[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        pairs[i] = bytes ? wide((u16)(words[i >> 1] >> 16 * (i & 1))) : words[i];
        if (sizes) pairs[i] = half_pair(half_value((u16)pairs[i]) * sizes[2 * i], half_value((u16)(pairs[i] >> 16)) * sizes[2 * i + 1]);
    }
    *(uint4*)(to + half_at(line, 0)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    *(uint4*)(to + half_at(line, 1)) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

// What U of a segment is multiplied by; a warp for each segment.
__device__ inline void find_sizes(Segments& here, int s, const i64* row, int lane) {
    float size = 0.f;
    if (lane < (int)row[WIDTH]) {
        const float* scale = (const float*)row[SCALE];
        size = __int_as_float((int)row[GAIN]) * (scale ? scale[lane] : 1.f);
    }
    float unit = fabsf(size);
#pragma unroll
    for (int step = 8; step; step >>= 1) unit = fmaxf(unit, __shfl_xor_sync(0xffffffffu, unit, step));
    if (lane < WIDTH_MOST) here.sizes[s][lane] = unit > 0.f ? size / unit : size;
    if (lane == 0) here.units[s] = unit;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) rebuild(const __grid_constant__ RebuildArgs a) {
    __shared__ __align__(128) Segments here;
    wait_for_input();
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, chain = blockIdx.z;
    const int stop_row = min(min(a.chain_rows, a.rows - chain * a.chain_rows), a.stop_row);
    const int row0 = a.first_row + blockIdx.y * SIDE, col0 = blockIdx.x * SIDE;
    if (row0 >= stop_row) return;
    const i64* table = a.table + (i64)chain * a.capacity * FIELDS;
    const int segments = a.counts[2 * chain + 1];
    // Half of the threads bring rows of U, and half lines of V.
    const bool is_u = thread < SIDE;
    const int line = thread & (SIDE - 1);
    const int at = is_u ? row0 + line : col0 + column_of(line);
    const bool inside = is_u ? at < stop_row : at < a.columns;
    {
        const int column = col0 + line;
        if (is_u) here.down[line] = inside ? typed_value(a.row_scale, (i64)chain * a.chain_rows + at, a.row_type) : 0.f;
        else here.across[line] = column < a.columns ? typed_value(a.col_scale, (i64)chain * a.col_stride + column, a.col_type) : 0.f;
    }
    // Of the tile, a warp has 32 rows and 64 columns; of these, a thread has four rows, and eight columns in each half.
    const int row_w = (warp >> 1) * 32, col_w = (warp & 1) * 64, g = lane >> 2, q = lane & 3;
    float sum[2][2][4][4] = {};  // 16 rows, 32 columns, product, number of a product
    for (int s0 = 0; s0 < segments; s0 += AT_A_TIME) {
        const int count = min(AT_A_TIME, segments - s0);
        if (s0) __syncthreads();
        if (warp < count) find_sizes(here, warp, table + (i64)(s0 + warp) * FIELDS, lane);
        uint4 raw[AT_A_TIME][2];
#pragma unroll
        for (int s = 0; s < AT_A_TIME; s++) {
            raw[s][0] = raw[s][1] = make_uint4(0, 0, 0, 0);
            if (s >= count) continue;
            const i64* row = table + (i64)(s0 + s) * FIELDS;
            const Lines lines(row, is_u ? U : V);
            if (inside && lines.is_even()) lines.load(at, raw[s]);
            const int sign_row = min(row0 + (thread >> 1), stop_row - 1);
            here.signs[s][thread >> 1][thread & 1] = __ldg((const uint2*)((const u8*)row[FIRST] + sign_row * row[STRIDE] + col0 / 8 + 8 * (thread & 1)));
        }
        __syncthreads();
#pragma unroll
        for (int s = 0; s < AT_A_TIME; s++) {
            if (s >= count) continue;
            const bool bytes = table[(i64)(s0 + s) * FIELDS + KIND] == SIGN8;
            store_line(here.factors[s] + (is_u ? 0 : SIDE * LINE), line, raw[s], bytes, is_u ? here.sizes[s] : nullptr);
        }
        for (int s = 0; s < count; s++) {
            const Lines lines(table + (i64)(s0 + s) * FIELDS, is_u ? U : V);
            if (!inside || lines.is_even()) continue;
            u16* to = (u16*)(here.factors[s] + (is_u ? 0 : SIDE * LINE));
#pragma unroll 1
            for (int k = 0; k < lines.width; k++)
                to[half_at(line, k >> 3) / 2 + (k & 7)] = (u16)half_pair(lines.value(at, k) * (is_u ? here.sizes[s][k] : 1.f), 0.f);
        }
        __syncthreads();
        for (int s = 0; s < count; s++) {
            const float unit = here.units[s];
            const u32 us = shared_address(here.factors[s]), vs = us + SIDE * LINE;
            u32 left[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) load_matrices(us + half_at(row_w + m * 16 + (lane & 15), lane >> 4), left[m]);
            uint2 signs[4];
#pragma unroll
            for (int r = 0; r < 4; r++) signs[r] = here.signs[s][row_w + r * 8 + g][warp & 1];
#pragma unroll
            for (int word = 0; word < 2; word++) {
                u32 bits[4];  // the byte of the thread on top
#pragma unroll
                for (int r = 0; r < 4; r++) bits[r] = (word ? signs[r].y : signs[r].x) << (24 - 8 * q);
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
    }
    if (!segments) __syncthreads();
    const bool whole = !(a.columns & 7) && !((u64)a.w & 15);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row_w + m * 16 + h * 8 + g;
            if (row0 + r >= stop_row) continue;
            const float down = here.down[r];
            u16* to = a.w + ((i64)chain * a.chain_rows + row0 + r - a.first_row) * a.columns + col0;
#pragma unroll
            for (int word = 0; word < 2; word++) {
                const int c = col_w + word * 32 + 8 * q;
                u32 pairs[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float* two = sum[m][word][j] + 2 * h;
                    pairs[j] = narrow_pair(two[0] * down * here.across[c + 2 * j], two[1] * down * here.across[c + 2 * j + 1]);
                }
                if (whole && col0 + c + 8 <= a.columns) {
                    *(uint4*)(to + c) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
                } else {
#pragma unroll
                    for (int e = 0; e < 8; e++)
                        if (col0 + c + e < a.columns) to[c + e] = (u16)(pairs[e >> 1] >> 16 * (e & 1));
                }
            }
        }
}

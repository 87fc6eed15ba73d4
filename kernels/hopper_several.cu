// y = x·Wᵀ for several tokens: tiles of W are made, rounded and multiplied where they are. After `hopper_tile.cu`; wants TOKENS, 8 or
// 16, of which `tokens` are there.
//
// A program has the tiles of 128 rows in a part of the columns. `add_up` sums what the parts of a row left, in one order, and
// adds single entries.
#define X_BYTES 320            // of a token's numbers of a tile: 256, and 64 so that eight tokens' lie in different banks

struct SeveralArgs {
    Matrix matrix;
    const u16* x;
    const void* bias;
    float* partial;            // [parts][tokens][rows]
    u16* y;
    int tokens, parts, bias_type;
};

// D += A·B of narrow numbers, with float32 sums.
__device__ inline void add_product(const u32 (&left)[4], u32 right0, u32 right1, float (&out)[4]) {
    if (BFLOAT)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(out[0]), "+f"(out[1]), "+f"(out[2]), "+f"(out[3]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(out[0]), "+f"(out[1]), "+f"(out[2]), "+f"(out[3]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// Bring x of the tile's columns: 16 bytes a thread; zeros past the columns and the tokens.
__device__ inline void bring_x(const SeveralArgs& args, u8* to, int col0) {
    const int token = threadIdx.x >> 4, column = (threadIdx.x & 15) * 8, columns = args.matrix.columns, there = columns - col0 - column;
    if (token >= TOKENS) return;
    const u16* from = args.x + (i64)token * columns + col0 + column;
    uint4 all = make_uint4(0, 0, 0, 0);
    if (token < args.tokens && there >= 8 && !((u64)from & 15)) {
        all = __ldg((const uint4*)from);
    } else if (token < args.tokens && there > 0) {
        u32 words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < there) words[i >> 1] |= (u32)from[i] << 16 * (i & 1);
        all = make_uint4(words[0], words[1], words[2], words[3]);
    }
    *(uint4*)(to + token * X_BYTES + column * 2) = all;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) multiply_several(const __grid_constant__ SeveralArgs args) {
    __shared__ __align__(128) Tile here;
    __shared__ __align__(128) u8 xs[TOKENS * X_BYTES];
    const Matrix& a = args.matrix;
    const int chain = blockIdx.z, stop_row = min(a.chain_rows, a.rows - chain * a.chain_rows), row0 = blockIdx.y * SIDE;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    begin_next();
    wait_for_input();
    if (row0 >= stop_row) return;
    const Where own;
    float y[2][TOKENS / 8][4] = {};  // 16 rows, eight tokens
    // The parts of the columns are as large as each other, to a tile.
    const int tiles = (a.columns + SIDE - 1) / SIDE, first = (i64)tiles * blockIdx.x / args.parts, stop = (i64)tiles * (blockIdx.x + 1) / args.parts;
    for (int tile = first; tile < stop; tile++) {
        if (tile != first) __syncthreads();
        bring_x(args, xs, tile * SIDE);
        Sum sum;
        make_tile(a, here, chain, row0, stop_row, tile * SIDE, sum);
        float down[4];
#pragma unroll
        for (int r = 0; r < 4; r++) down[r] = here.down[own.row + r * 8];
#pragma unroll
        for (int word = 0; word < 2; word++) {
            const int c = own.column + word * 32;
            uint4 right[TOKENS / 8];
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++) right[n] = *(const uint4*)(xs + (n * 8 + (lane >> 2)) * X_BYTES + c * 2);
            float across[8];
#pragma unroll
            for (int i = 0; i < 8; i++) across[i] = here.across[c + i];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int two = 0; two < 2; two++) {
                    u32 left[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int j = 2 * two + (i >> 1), h = i & 1;
                        const float* both = sum[m][word][j] + 2 * h;
                        left[i] = narrow_pair(both[0] * down[2 * m + h] * across[2 * j], both[1] * down[2 * m + h] * across[2 * j + 1]);
                    }
#pragma unroll
                    for (int n = 0; n < TOKENS / 8; n++) add_product(left, two ? right[n].z : right[n].x, two ? right[n].w : right[n].y, y[m][n]);
                }
        }
    }
    // A warp has half of the columns of its rows: another one has the other.
    float* between = (float*)here.factors[0] + ((warp >> 1) * 32 + lane) * (TOKENS + 1);
    __syncthreads();
    if (warp & 1)
#pragma unroll
        for (int i = 0; i < TOKENS; i++) between[i] = y[i / (TOKENS / 2)][i % (TOKENS / 2) / 4][i & 3];
    __syncthreads();
    if (warp & 1) return;
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        const int m = i / (TOKENS / 2), n = i % (TOKENS / 2) / 4, e = i & 3;
        const int row = row0 + own.row + m * 16 + (e >> 1) * 8, token = n * 8 + (lane & 3) * 2 + (e & 1);
        if (row < stop_row && token < args.tokens)
            args.partial[((i64)blockIdx.x * args.tokens + token) * a.rows + (i64)chain * a.chain_rows + row] = y[m][n][e] + between[i];
    }
}

// What the entries of sparse blocks add to a row, without its scale.
__device__ inline float sum_entries(const SeveralArgs& args, int chain, int row, int token) {
    const Matrix& a = args.matrix;
    const int n_rows = min(a.chain_rows, a.rows - chain * a.chain_rows);
    const u16* x = args.x + (i64)token * a.columns;
    float total = 0.f;
    for (int s = a.counts[2 * chain + 1]; s < a.counts[2 * chain]; s++) {
        const i64* line = a.table + ((i64)chain * a.capacity + s) * FIELDS;
        int at[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int r = row + e;
            at[e] = r >= n_rows ? (int)line[RANK] : ((const int*)line[FIRST])[r >> 6] + (line[WIDTH] == 2 ? (int)((const u16*)line[U])[r] : ((const int*)line[U])[r]);
        }
        float sum = 0.f;
        for (int i = at[0]; i < at[1]; i++) {
            const int column = ((const u16*)line[V])[i];
            sum += narrow_value(x[column]) * typed_value(a.col_scale, (i64)chain * a.col_stride + column, a.col_type) * byte_value(((const u8*)line[STRIDE])[i]);
        }
        total += sum * *(const float*)line[SCALE];
    }
    return total;
}

// y; a thread has one row, a program THREADS rows of a token.
extern "C" __global__ void __launch_bounds__(THREADS) add_up(const __grid_constant__ SeveralArgs args) {
    const Matrix& a = args.matrix;
    const int row = blockIdx.x * THREADS + threadIdx.x, token = blockIdx.y;
    begin_next();
    wait_for_input();
    if (row >= a.rows) return;
    const int chain = row / a.chain_rows;
    float total = 0.f;
    for (int part = 0; part < args.parts; part++) total += args.partial[((i64)part * args.tokens + token) * a.rows + row];
    if (a.counts[2 * chain] > a.counts[2 * chain + 1])
        total += sum_entries(args, chain, row - chain * a.chain_rows, token) * typed_value(a.row_scale, row, a.row_type);
    if (args.bias) total += typed_value(args.bias, row, args.bias_type);
    args.y[(i64)token * a.rows + row] = narrow(total);
}

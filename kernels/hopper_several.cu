// y = x·Wᵀ for several tokens: products of U and V, turned by their signs, are multiplied where they are, without W. After
// `hopper_entries.cu`; wants TOKENS, 8 or 16, of which `tokens` are there.
//
// A program has the tiles of 128 rows in a part of the columns. It holds x of these, multiplied by the scales of the columns and, for
// each token, by a power of two, by which half precision holds it. `add_up` sums what the parts of a row left, in one order, and
// adds single entries.
#define X_LINE (2 * TILE + 64)          // bytes of a token's numbers of a tile: eight tokens' lie in different banks
#define X_TILE (TOKENS * X_LINE)
#define LANES (THREADS / TOKENS)        // threads that bring a token

struct SeveralArgs {
    Matrix matrix;
    const u16* x;
    const void* bias;
    float* partial;            // [parts][tokens][rows]
    u16* y;
    int tokens, parts, bias_type;
    int share_bits;            // a power of two of threads add up a number
};

// D += A·B of numbers of half precision, with float32 sums.
__device__ inline void add_product(const u32 (&left)[4], u32 right0, u32 right1, float (&out)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(out[0]), "+f"(out[1]), "+f"(out[2]), "+f"(out[3]) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// Eight numbers of x, from a column on, times the scales of their columns; zeros past the last one.
__device__ inline void load_x(const SeveralArgs& args, int chain, int token, int column, float (&out)[8]) {
    const Matrix& a = args.matrix;
    const u16* from = args.x + (i64)token * a.columns + column;
    const i64 scale = (i64)chain * a.col_stride + column;
    const int there = token < args.tokens ? a.columns - column : 0;
    u32 words[4] = {0, 0, 0, 0};
    if (there >= 8 && !((u64)from & 15)) {
        const uint4 all = *(const uint4*)from;
        words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < there) words[i >> 1] |= (u32)from[i] << 16 * (i & 1);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        out[i] = i < there ? narrow_value((u16)(words[i >> 1] >> 16 * (i & 1))) * typed_value(a.col_scale, scale + i, a.col_type) : 0.f;
}

// Bring x of all tiles of a part, and give the inverse of each token's power of two. Ends with a barrier.
__device__ inline void bring_x(const SeveralArgs& args, const Strip& strip, u8* to, float* inverse) {
    const int token = strip.own.thread / LANES, lane = strip.own.thread % LANES, last = (strip.stop - strip.first) * TILE;
    float largest = 0.f, all[8];
    for (int c = 8 * lane; c < last; c += 8 * LANES) {
        load_x(args, strip.chain, token, strip.first * TILE + c, all);
#pragma unroll
        for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(all[i]));
    }
#pragma unroll
    for (int step = LANES / 2; step; step >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    // Its power of two becomes 2^13. What is no number stays one: `fmaxf` passes by NaN, and infinity gives infinity.
    const int exponent = min(max((int)(__float_as_uint(largest) >> 23), 14), 253);
    const float power = __uint_as_float((u32)(267 - exponent) << 23);
    if (!lane) inverse[token] = __uint_as_float((u32)(exponent - 13) << 23);
    // Eight columns and those 64 further on, whose numbers are in pairs: as `Line` has them, four pairs of each thread side by side.
    for (int i = lane; i < last / 16; i += LANES) {
        const int c = i / 8 * 128 + (i & 7) * 8;
        float more[8];
        load_x(args, strip.chain, token, strip.first * TILE + c, all), load_x(args, strip.chain, token, strip.first * TILE + c + 64, more);
        u32 pairs[8];
#pragma unroll
        for (int k = 0; k < 8; k++) pairs[k] = half_pair(all[k] * power, more[k] * power);
        u8* at = to + c / TILE * X_TILE + token * X_LINE + c % TILE / 128 * 256 + (i >> 2 & 1) * 128 + (i & 3) * 16;
        *(uint4*)at = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]), *(uint4*)(at + 64) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) multiply_several(const __grid_constant__ SeveralArgs args) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ float inverse[TOKENS];
    const Matrix& a = args.matrix;
    const int chain = blockIdx.z, stop_row = min(a.chain_rows, a.rows - chain * a.chain_rows), row0 = blockIdx.y * SIDE;
    if (row0 >= stop_row) return;
    Strip strip(a, memory, chain, row0, stop_row, first_tile(a.columns, blockIdx.x, args.parts), first_tile(a.columns, blockIdx.x + 1, args.parts));
    strip.begin();
    u8* xs = strip.rest();
    wait_for_input();
    begin_next();
    bring_x(args, strip, xs, inverse);
    const Where& own = strip.own;
    const int lane = own.lane, warp = own.thread >> 5;
    float y[2][TOKENS / 8][4] = {};  // 16 rows, eight tokens
    for (int tile = strip.first; tile < strip.stop; tile++) {
        const u8* x = xs + (tile - strip.first) * X_TILE + (lane >> 2) * X_LINE + own.column * 2;
        for (int s = 0; s < strip.segments; s++) {
            uint4 right[TOKENS / 8];
            u32 left[2][4];
            strip.begin_segment(s);
            strip.multiply(s, [&](int at, int m, const u32 (&signs)[4], auto add) {
                u32 made[2] = {0, 0};
                add(made);
#pragma unroll
                for (int h = 0; h < 2; h++) left[m][2 * (at & 1) + h] = turned(made[h], signs[2 * m + h], at);
                if (!(at & 3) && !m)
#pragma unroll
                    for (int n = 0; n < TOKENS / 8; n++) right[n] = *(const uint4*)(x + n * 8 * X_LINE + at * 16);
                if (at & 1)
#pragma unroll
                    for (int n = 0; n < TOKENS / 8; n++) add_product(left[m], at & 2 ? right[n].z : right[n].x, at & 2 ? right[n].w : right[n].y, y[m][n]);
            });
            strip.end_segment();
        }
    }
    // A warp has half of the columns of its rows: another one has the other.
    float* between = (float*)strip.held.v + ((warp >> 1) * 32 + lane) * (TOKENS + 1);
    __syncthreads();
    if (warp & 1)
#pragma unroll
        for (int i = 0; i < TOKENS; i++) between[i] = y[i / (TOKENS / 2)][i % (TOKENS / 2) / 4][i & 3];
    __syncthreads();
    if (warp & 1) return;
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        const int m = i / (TOKENS / 2), n = i % (TOKENS / 2) / 4, e = i & 3;
        const int r = own.row + m * 16 + (e >> 1) * 8, token = n * 8 + (lane & 3) * 2 + (e & 1);
        if (row0 + r >= stop_row || token >= args.tokens) continue;
        const i64 row = (i64)chain * a.chain_rows + row0 + r;
        const float down = typed_value(a.row_scale, row, a.row_type) * strip.held.inverse[r] * inverse[token];
        args.partial[((i64)blockIdx.x * args.tokens + token) * a.rows + row] = (y[m][n][e] + between[i]) * down;
    }
}

// What one of the threads of a row adds of the entries of sparse blocks, without the scale of the row.
__device__ inline float sum_entries(const SeveralArgs& args, int chain, int row, int token, int own) {
    const Matrix& a = args.matrix;
    const u16* x = args.x + (i64)token * a.columns;
    float total = 0.f;
    for (int s = a.counts[2 * chain + 1]; s < a.counts[2 * chain]; s++) {
        const Entries entries(a, chain, s, row);
        float sum = 0.f;
#pragma unroll 4
        for (int i = entries.first + own; i < entries.stop; i += 1 << args.share_bits) {
            const int column = entries.columns[i];
            sum += narrow_value(x[column]) * typed_value(a.col_scale, (i64)chain * a.col_stride + column, a.col_type) * byte_value(entries.values[i]);
        }
        total += sum * entries.scale;
    }
    return total;
}

// y; some threads side by side have a row. When it begins, `multiply_several` has x.
extern "C" __global__ void __launch_bounds__(THREADS) add_up(const __grid_constant__ SeveralArgs args) {
    const Matrix& a = args.matrix;
    const int share = 1 << args.share_bits, row = (int)(blockIdx.x * THREADS + threadIdx.x) >> args.share_bits, own = threadIdx.x & (share - 1), token = blockIdx.y;
    begin_next();
    float total = 0.f;
    if (row < a.rows) {
        const int chain = row / a.chain_rows;
        if (a.counts[2 * chain] > a.counts[2 * chain + 1])
            total = sum_entries(args, chain, row - chain * a.chain_rows, token, own) * typed_value(a.row_scale, row, a.row_type);
    }
    wait_for_input();
    if (row < a.rows)
        for (int part = own; part < args.parts; part += share) total += args.partial[((i64)part * args.tokens + token) * a.rows + row];
    for (int step = 1; step < share; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (row >= a.rows || own) return;
    if (args.bias) total += typed_value(args.bias, row, args.bias_type);
    args.y[(i64)token * a.rows + row] = narrow(total);
}

// W of a table in float16 or bfloat16: a program writes a part of a strip. After `hopper_entries.cu`.

struct RebuildArgs {
    Matrix matrix;
    u16* w;
    int first_row, stop_row;
};

// Write a thread's numbers of a tile, once they are turned by the last signs: eight columns of a row at a time. `whole`: nothing lies outside, and every address is even.
template <bool whole> __device__ inline void write(const RebuildArgs& args, const Strip& strip, int tile, const float* across, const u32 (&sum)[2][16][2], const u32 (&signs)[4]) {
    const Where& own = strip.own;
    const int row0 = strip.row0 + own.row, columns = args.matrix.columns;
    float down[4];
#pragma unroll
    for (int r = 0; r < 4; r++) down[r] = strip.held.inverse[own.row + r * 8];
    u16* first = args.w + ((i64)strip.chain * args.matrix.chain_rows + row0 - args.first_row) * columns + tile * TILE + own.column;
#pragma unroll
    for (int word = 0; word < 2; word++) {
        float scales[2][8];
#pragma unroll
        for (int i = 0; i < 16; i++) scales[i >> 3][i & 7] = across[own.column + word * 32 + (i >> 3) * 64 + (i & 7)];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            u32 both[8];       // columns of this word, and of the one after the next
#pragma unroll
            for (int i = 0; i < 8; i++) both[i] = turned(sum[r >> 1][word * 8 + i][r & 1], signs[r], word * 8 + i);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                u16* to = first + (i64)(r * 8) * columns + word * 32 + e * 64;
                u32 pairs[4];
#pragma unroll
                for (int j = 0; j < 4; j++) pairs[j] = narrow_pair(half_value((u16)(both[2 * j] >> 16 * e)) * down[r] * scales[e][2 * j], half_value((u16)(both[2 * j + 1] >> 16 * e)) * down[r] * scales[e][2 * j + 1]);
                if (whole) {
                    *(uint4*)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
                } else if (row0 + r * 8 < strip.stop_row) {
                    const int there = columns - tile * TILE - own.column - word * 32 - e * 64;
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (i < there) to[i] = (u16)(pairs[i >> 1] >> 16 * (i & 1));
                }
            }
        }
    }
}

#define AT_ONCE 8
// The entries are on their way to the cache while tiles are made. Two threads have a row.
__device__ inline void expect_entries(const Matrix& a, const Strip& strip) {
    const int row = strip.row0 + (strip.own.thread >> 1);
    if (row >= strip.stop_row) return;
    for (int s = strip.segments; s < a.counts[2 * strip.chain]; s++) {
        const Entries entries(a, strip.chain, s, row);
        if (strip.own.thread & 1)
            for (int i = entries.first; i < entries.stop; i += 32) prefetch(entries.values + i);
        else
            for (int i = entries.first; i < entries.stop; i += 16) prefetch(entries.columns + i);
    }
}
// Add the entries of sparse blocks to what the program has written, block after block. `across`: the scales of its columns.
__device__ inline void add_entries(const RebuildArgs& args, const Strip& strip, const float* across) {
    const Matrix& a = args.matrix;
    const int row = strip.row0 + (strip.own.thread >> 1), first = strip.first * TILE, stop = strip.stop * TILE;
    for (int s = strip.segments; s < a.counts[2 * strip.chain]; s++) {
        __syncthreads();
        if (row >= strip.stop_row) continue;
        const Entries entries(a, strip.chain, s, row);
        const i64 own = (i64)strip.chain * a.chain_rows + row;
        const float down = typed_value(a.row_scale, own, a.row_type) * entries.scale;
        u16* to = args.w + (own - args.first_row) * a.columns;
        // No two entries of a block have the same place, so that what several add to is read before any is written.
        for (int i = entries.first + (strip.own.thread & 1); i < entries.stop; i += 2 * AT_ONCE) {
            int columns[AT_ONCE];
            float sums[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                columns[k] = i + 2 * k < entries.stop ? entries.columns[i + 2 * k] : -1;
                if (columns[k] < first || columns[k] >= stop) columns[k] = -1;
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (columns[k] >= 0) sums[k] = narrow_value(to[columns[k]]) + byte_value(entries.values[i + 2 * k]) * down * across[columns[k] - first];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (columns[k] >= 0) to[columns[k]] = narrow(sums[k]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) rebuild(const __grid_constant__ RebuildArgs args) {
    extern __shared__ __align__(128) u8 memory[];
    const Matrix& a = args.matrix;
    const int chain = blockIdx.z, stop_row = min(min(a.chain_rows, a.rows - chain * a.chain_rows), args.stop_row);
    const int row0 = args.first_row + blockIdx.y * SIDE;
    if (row0 >= stop_row) return;
    Strip strip(a, memory, chain, row0, stop_row, first_tile(a.columns, blockIdx.x, gridDim.x), first_tile(a.columns, blockIdx.x + 1, gridDim.x));
    float* const across = (float*)strip.rest();
    strip.begin();
    expect_entries(a, strip);
    for (int i = strip.own.thread; i < (strip.stop - strip.first) * TILE; i += THREADS) {
        const int column = strip.first * TILE + i;
        across[i] = column < a.columns ? typed_value(a.col_scale, (i64)chain * a.col_stride + column, a.col_type) : 0.f;
    }
    wait_for_input();  // W may still be read
    if (strip.own.thread < SIDE && row0 + strip.own.thread < stop_row)
        strip.held.inverse[strip.own.thread] *= typed_value(a.row_scale, (i64)chain * a.chain_rows + row0 + strip.own.thread, a.row_type);
    __syncthreads();
    const bool even = !(a.columns & 7) && !((u64)args.w & 15) && row0 + SIDE <= stop_row;
    for (int tile = strip.first; tile < strip.stop; tile++) {
        // By 16 rows, number of columns, eight rows: the sum so far, turned by the signs of the segment that was added last, so that the
        // next product is added to it by the tensor cores.
        u32 sum[2][16][2], last[4] = {};
#pragma unroll
        for (int i = 0; i < 64; i++) sum[i >> 5][i >> 1 & 15][i & 1] = 0;
        for (int s = 0; s < strip.segments; s++) {
            u32 changed[4];
            const auto follow = [&](const u32 (&signs)[4]) {
#pragma unroll
                for (int r = 0; r < 4; r++) changed[r] = last[r] ^ signs[r], last[r] = signs[r];
            };
            strip.begin_segment(s);
            if (s)
                strip.multiply(s, [&](int at, int m, const u32 (&signs)[4], auto add) {
                    if (!at && !m) follow(signs);
#pragma unroll
                    for (int h = 0; h < 2; h++) sum[m][at][h] = turned(sum[m][at][h], changed[2 * m + h], at);
                    add(sum[m][at]);
                });
            else
                strip.multiply(s, [&](int at, int m, const u32 (&signs)[4], auto add) {
                    if (!at && !m) follow(signs);
                    add(sum[m][at]);
                });
            strip.end_segment();
        }
        if (even && (tile + 1) * TILE <= a.columns) write<true>(args, strip, tile, across + (tile - strip.first) * TILE, sum, last);
        else write<false>(args, strip, tile, across + (tile - strip.first) * TILE, sum, last);
    }
    add_entries(args, strip, across);
}

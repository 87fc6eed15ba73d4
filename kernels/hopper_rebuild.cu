// W of a table, but for single entries, in float16 or bfloat16: a program writes a tile. After `hopper_tile.cu`.

struct RebuildArgs {
    Matrix matrix;
    u16* w;
    int first_row, stop_row;
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) rebuild(const __grid_constant__ RebuildArgs args) {
    __shared__ __align__(128) Tile here;
    const Matrix& a = args.matrix;
    const int chain = blockIdx.z, stop_row = min(min(a.chain_rows, a.rows - chain * a.chain_rows), args.stop_row);
    const int row0 = args.first_row + blockIdx.y * SIDE, col0 = blockIdx.x * SIDE;
    wait_for_input();
    if (row0 >= stop_row) return;
    Sum sum;
    make_tile(a, here, chain, row0, stop_row, col0, sum);
    const Where own;
    const bool whole = !(a.columns & 7) && !((u64)args.w & 15);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = own.row + m * 16 + h * 8;
            if (row0 + r >= stop_row) continue;
            const float down = here.down[r];
            u16* to = args.w + ((i64)chain * a.chain_rows + row0 + r - args.first_row) * a.columns + col0;
#pragma unroll
            for (int word = 0; word < 2; word++) {
                const int c = own.column + word * 32;
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

// The reach of each row of a matrix, a bound on what it adds up to for an x of which the largest is 1, by the largest of V of each
// 256 columns; and its scale. After `hopper_values.cu`.
#define NO_NUMBER 4096
__device__ inline int exponent(float size) {
    const int found = (int)(__float_as_uint(size) >> 23 & 255) - 126;
    return found > 128 ? NO_NUMBER : found;
}

struct ReachArgs {
    const i64* table;
    const int* counts;
    const float* col_largest;
    const void* row_scale;
    float2* row_values;
    int row_type, tile, chain, rows, chain_rows, columns, capacity, ranks;
};

extern "C" __global__ void __launch_bounds__(256) reach(const __grid_constant__ ReachArgs a) {
    wait_for_input();
    __shared__ float weights[16];
    const int r = blockIdx.x * 256 + threadIdx.x, thread = threadIdx.x, groups = (a.columns + 255) / 256;
    const int segments = a.counts[2 * a.chain], dense = a.counts[2 * a.chain + 1];
    float total = 0.f;
    for (int s = 0; s < segments; s++) {
        const i64* line = a.table + ((i64)a.chain * a.capacity + s) * FIELDS;
        if (s >= dense) {
            if (r >= a.rows) continue;
            int at[2];
            for (int e = 0; e < 2; e++)
                at[e] = r + e >= a.rows ? (int)line[RANK] : ((const int*)line[FIRST])[(r + e) >> 6] + (line[WIDTH] == 2 ? (int)((const u16*)line[U])[r + e] : ((const int*)line[U])[r + e]);
            float sum = 0.f;
            for (int i = at[0]; i < at[1]; i++) sum += fabsf(byte_value(((const u8*)line[STRIDE])[i]));
            total += sum * fabsf(*(const float*)line[SCALE]);
            continue;
        }
        const int width = (int)line[WIDTH];
        __syncthreads();
        if (thread < width) {
            float sum = 0.f;
            for (int g = 0; g < groups; g++) sum += 256.f * ((const float*)line[V_MAX])[g * a.ranks + thread];
            weights[thread] = sum * fabsf(__int_as_float((int)line[GAIN]) * (line[SCALE] ? ((const float*)line[SCALE])[thread] : 1.f));
        }
        __syncthreads();
        if (r >= a.rows) continue;
        const bool bytes = (int)line[KIND] == SIGN8;
        const u8* u = (const u8*)line[U] + (i64)r * line[RANK] * (bytes ? 1 : 2);
        for (int k = 0; k < width; k++) total += fabsf(bytes ? byte_value(u[k]) : half_value(((const u16*)u)[k])) * weights[k];
    }
    if (r >= a.rows) return;
    const float scale = typed_value(a.row_scale, (i64)a.chain * a.chain_rows + r, a.row_type);
    a.row_values[(i64)a.chain * ((a.chain_rows + a.tile - 1) / a.tile * a.tile) + r] = float2{__int_as_float(exponent(total * a.col_largest[a.chain])), scale};
}

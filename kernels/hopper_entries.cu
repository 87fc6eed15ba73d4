// Single entries, as sparse blocks hold them. After `hopper_strip.cu`.

// The entries that a row has of a sparse block.
struct Entries {
    const u16* columns;
    const u8* values;
    float scale;
    int first, stop;
    __device__ Entries(const Matrix& a, int chain, int segment, int row) {
        const i64* line = a.table + ((i64)chain * a.capacity + segment) * FIELDS;
        const int n_rows = min(a.chain_rows, a.rows - chain * a.chain_rows);
        columns = (const u16*)line[V], values = (const u8*)line[STRIDE], scale = *(const float*)line[SCALE];
        int at[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int r = row + e;
            at[e] = r >= n_rows ? (int)line[RANK] : ((const int*)line[FIRST])[r >> 6] + (line[WIDTH] == 2 ? (int)((const u16*)line[U])[r] : ((const int*)line[U])[r]);
        }
        first = at[0], stop = at[1];
    }
};

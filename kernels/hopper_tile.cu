// What a matrix is told to kernels by tiles, and how numbers of a tile lie in shared memory and in registers.
//
// Which column of V is which column of a product is free: a thread has eight columns side by side in each 32 of a row, as they are
// written, and the two of a pair are 64 columns apart, so that their signs are half a word apart where the bytes of four words of signs
// are put together.
//
// After `hopper_assembly.cu`.
#define SIDE 128               // rows of a strip
#define TILE 256               // columns of a tile
#define THREADS 256
#define WARPS (THREADS / 32)
#define LINE 32                // bytes of a row of U in shared memory, and of V in half precision

struct Matrix {
    const void* row_scale;
    const void* col_scale;
    const i64* table;
    const int* counts;
    int rows, chain_rows, columns, col_stride, capacity, ranks;
    int row_type, col_type;
};

// Where V of a column of a tile is in shared memory, in lines: it is number n of eight that are multiplied at once, the `at`-th eight. Four
// columns side by side stay so, in 128 bytes, since a copy takes a step for each 128 bytes that it reads and each that it writes; in another
// order for each n, so that those of eight n are in different banks.
struct Line {
    static __device__ int of_column(int column) {
        const int word = column >> 5, at = (word >> 2) * 16 + (word & 1) * 8 + (column & 7), n = (column >> 3 & 3) * 2 + (word >> 1 & 1);
        return first(at, n) ^ (at & 3);
    }
    // That of the first of its four columns: of the others the number is another one in its two lowest bits.
    static __device__ int first(int at, int n) { return (at >> 2) * 32 + n * 4 + (n >> 1 & 3 ^ (n & 1) << 1); }
};
// Turn a pair of products by bits `at` and `at` + 16 of a word, where they are set.
__device__ inline u32 turned(u32 pair, u32 word, int at) { return pair ^ (word << (15 - at) & 0x80008000u); }

// Where numbers of a row of U are, from number k on, a multiple of 4, in words: two pairs lie two words apart, the next two four
// further on. So what a thread multiplies, of a row and of that eight further down, lies side by side.
__device__ inline int factor_at(int row, int k) { return (row & ~15) * (LINE / 4) + ((row & 7) * 4 + (k >> 2)) * 4 + (row >> 3 & 1); }

// Where a thread's numbers are: of a tile a warp has 32 rows and 128 columns, of these a thread four rows, eight apart, and eight
// columns in each 32.
struct Where {
    int thread, lane, half, row, column;
    u32 byte;                  // chooses the signs of its columns in two words
    __device__ Where() {
        thread = thread_number(), lane = thread & 31, half = thread >> 5 & 1;
        row = (thread >> 6) * 32 + (lane >> 2), column = half * (TILE / 2) + (lane & 3) * 8, byte = 0x40 + (lane & 3) * 0x11;
    }
};

// After a kernel: every program of a grid, one after the other. Gives whether all of them came to their ends.
template <class Kernel, class Args> static bool run_(Kernel kernel, const Args& args, int threads, Place grid) {
    static Kernel run;
    static const Args* given;
    static std::vector<char> stacks;
    const size_t size = 1 << 16;
    run = kernel, given = &args;
    stacks.resize(size * threads);
    gridDim = grid, blockDim = {threads, 1, 1};
    for (int number = 0; number < grid.x * grid.y * grid.z; number++) {
        blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        idle_ = 0;
        memset(anchor_, 255, sizeof anchor_);  // nothing is a number before it is written
        program_ = Meeting_();
        for (Meeting_& warp : warps_) warp = Meeting_();
        for (Meeting_& group : groups_) group = Meeting_();
        makers_ = Meeting_();
        for (int t = 0; t < threads; t++) {
            ended_[t] = false, copies_[t].clear();
            getcontext(&threads_[t]);
            threads_[t].uc_stack.ss_sp = stacks.data() + size * t, threads_[t].uc_stack.ss_size = size;
            threads_[t].uc_link = nullptr;
            makecontext(&threads_[t], +[] {
                run(*given);
                ended_[threadIdx.x] = true, idle_ = 0;
                next_();
            }, 0);
        }
        threadIdx = {0, 0, 0};
        swapcontext(&main_, &threads_[0]);
        for (int t = 0; t < threads; t++)
            if (!ended_[t]) return false;
    }
    return true;
}

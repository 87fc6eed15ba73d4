/** What opening and planning take: `node bench.js PATH_OR_URL` prints one JSON object. */
import { readFileSync } from "node:fs";
import { open } from "./bstk.js";

/** The most memory that this process held so far, bytes; on Linux. */
const peak = () => 1024 * Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))?.[1]);
const before = peak();
const began = performance.now();
const file = await open(process.argv[2]);
const opened = performance.now() - began;
const plans = [];
for (let percent = 25; percent <= 100; percent += 5) {
  const start = performance.now();
  file.plan(Math.max(file.minimumBytes, Math.floor((file.totalBytes * percent) / 100)));
  plans.push(performance.now() - start);
}
const result = {
  blocks: file.index.count,
  open_seconds: opened / 1000,
  first_plan_seconds: plans[0] / 1000,
  slowest_plan_seconds: Math.max(...plans) / 1000,
  requests: file.source.requests,
  bytes: file.source.bytes,
  peak_bytes: peak() - before,
};
process.stdout.write(`${JSON.stringify(result)}\n`);
await file.close();

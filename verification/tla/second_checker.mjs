// Runs tla-checker on jobs: second.py starts it. Arguments: the package's folder. Standard input: a JSON list of
// {spec, cfg, most}; standard output: one line of JSON a job, as the checker gave it.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const checker = await import(pathToFileURL(`${folder}/tla_checker.js`).href);
checker.initSync({ module: readFileSync(`${folder}/tla_checker_bg.wasm`) });
for (const { spec, cfg, most } of JSON.parse(readFileSync(0, "utf-8"))) {
    const allowDeadlock = true, dot = false, deepest = 1000000;
    process.stdout.write(checker.check_spec_with_cfg(spec, cfg, "{}", most, deepest, allowDeadlock, dot) + "\n");
}

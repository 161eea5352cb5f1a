#!/usr/bin/env node
// Checks the dashboard against Grafana's own types with TypeScript. A panel, option, field option, query,
// transformation or variable field that Grafana does not know is an error, and so is a value of the wrong
// type. A missing field is not an error, because Grafana has a default for it.
// Usage: scripts/check-dashboard.mjs [DASHBOARD]      (default: deploy/grafana/tiny-probe.json)
// Needs npm, which installs the types and the compiler into target/.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { join } from "node:path";

const file = process.argv[2] ?? fileURLToPath(new URL("../deploy/grafana/tiny-probe.json", import.meta.url));
const tools = fileURLToPath(new URL("../target/check-dashboard", import.meta.url));
const npm = (...words) => execFileSync("npm", [...words, "--silent"], { cwd: tools, encoding: "utf8" });
if (!existsSync(join(tools, "complete"))) {
    rmSync(tools, { recursive: true, force: true });
    // The lock file has the versions and hashes.
    cpSync(fileURLToPath(new URL("requirements/npm-dashboard", import.meta.url)), tools, { recursive: true });
    npm("ci", "--ignore-scripts");
    // Only three lists of names from this package are needed, so its dependencies are not installed.
    const archive = npm("pack", "@grafana/data@12.4.10").trim();
    const hash = createHash("sha512").update(readFileSync(join(tools, archive))).digest("base64");
    if (hash !== "xNr2kndcttPlWaU0yHLFshRnFgIrUKGJRZqdhIFAV9ZMoIn4y5FnbJNotKAeSp5uWrMbPp8acaYaZTeJFysZ2w==") {
        throw new Error(`${archive} has another hash than when it was chosen: ${hash}`);
    }
    execFileSync("tar", ["-x", "-z", "-f", archive], { cwd: tools });
    writeFileSync(join(tools, "complete"), "");
}
const ts = createRequire(join(tools, "index.js"))("typescript");
const sdk = "@grafana/grafana-foundation-sdk";

const { panels, ...dashboard } = JSON.parse(readFileSync(file, "utf8"));
const flat = panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);
const types = [...new Set(flat.map((panel) => panel.type))].filter((type) => type !== "row");
const module = (type) => type.replaceAll("-", "");
const declarations = (type) => {
    const path = join(tools, "node_modules", sdk, "dist", module(type), "types.gen.d.ts");
    const text = existsSync(path) ? readFileSync(path, "utf8") : "";
    if (!text.includes("interface Options ")) {
        fail([`Grafana has no panel "${type}"`]);
    }
    return { type, custom: /(interface|type) FieldConfig /.test(text) ? `${module(type)}.FieldConfig` : "{}" };
};

function fail(lines) {
    for (const line of lines) {
        console.error(`FAILED  ${line}`);
    }
    process.exit(1);
}

const source = `
import type * as dashboard from "${sdk}/dashboard";
import type * as prometheus from "${sdk}/prometheus";
import type * as units from "${sdk}/units";
import type { DataTransformerID } from "./package/dist/types/transformations/transformers/ids";
import type { FieldMatcherID } from "./package/dist/types/transformations/matchers/ids";
import type { ReducerID } from "./package/dist/types/transformations/fieldReducer";
${types.map((type) => `import type * as ${module(type)} from "${sdk}/${type.replaceAll("-", "")}";`).join("\n")}

type Unit = (typeof units)[keyof typeof units] | \`prefix:\${string}\` | \`suffix:\${string}\`;
// The JSON form of a type: enums by value, all fields optional, no methods. Where the SDK accepts any
// string, the field is restricted to the known names.
type Json<T> =
    unknown extends T ? any
    : T extends string ? \`\${T}\`
    : T extends number ? (\`\${T}\` extends \`\${infer N extends number}\` ? N : never)
    : T extends (infer E)[] ? Json<E>[]
    : T extends object ? { [K in keyof T as K extends \`_\${string}\` ? never : K]?: Field<K, T[K]> }
    : T;
type Field<K, T> =
    K extends "unit" ? Unit
    : K extends "calcs" ? \`\${ReducerID}\`[]
    : K extends "transformations" ? (Omit<Json<dashboard.DataTransformerConfig>, "id"> & { id: \`\${DataTransformerID}\` })[]
    : Json<T>;
// The properties that an override can set: { id: "unit", value: ... }, { id: "custom.lineWidth", value: ... }.
type Settings<T, Prefix extends string> =
    { [K in keyof T & string]-?: { id: \`\${Prefix}\${K}\`; value?: T[K] } }[keyof T & string];
type Panel<Type extends string, Options, Custom> = Omit<Json<dashboard.Panel>, "type" | "options" | "targets" | "fieldConfig"> & {
    type: Type;
    options?: Json<Options>;
    targets?: Json<prometheus.Dataquery>[];
    fieldConfig?: {
        defaults?: Omit<Json<dashboard.FieldConfig>, "custom"> & { custom?: Json<Custom> };
        overrides?: {
            matcher: { id: \`\${FieldMatcherID}\`; options?: unknown };
            properties: (Settings<Json<dashboard.FieldConfig>, ""> | Settings<Json<Custom>, "custom.">)[];
        }[];
    };
};
type Row = Omit<Json<dashboard.RowPanel>, "panels"> & { panels?: unknown[] };
${types.map(declarations).map(({ type, custom }) =>
    `type Panel_${module(type)} = Panel<"${type}", ${module(type)}.Options, ${custom}>;`).join("\n")}

const dashboard_: Omit<Json<dashboard.Dashboard>, "panels"> = ${JSON.stringify(dashboard, null, 2)};
${flat.map((panel, index) =>
    `const panel${index}: ${panel.type === "row" ? "Row" : `Panel_${module(panel.type)}`} = ${JSON.stringify(panel, null, 2)};`).join("\n")}
`;
const path = join(tools, "dashboard.ts");
writeFileSync(path, source);

const program = ts.createProgram([path], {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: [],
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
});
const errors = ts.getPreEmitDiagnostics(program).map(({ file, start, messageText }) => {
    const before = file ? file.text.slice(0, start) : "";
    // The error is in the last panel that starts before it.
    const index = before.match(/\nconst panel\d+/g)?.length;
    const where = index ? `panel "${flat[index - 1].title}"` : "dashboard";
    const line = file ? file.text.slice(before.lastIndexOf("\n") + 1).split("\n", 1)[0].trim() : "";
    // The last line is the innermost reason. It is truncated because the type names in it can be very long.
    const reason = ts.flattenDiagnosticMessageText(messageText, "\n").split("\n").at(-1).trim();
    return `${where}: ${line}\n        ${reason.length > 300 ? `${reason.slice(0, 300)}…` : reason}`;
});
if (errors.length > 0) {
    fail(errors);
}
console.log(`ok      ${flat.length} panels conform to Grafana's types`);

// A query that does not select by the variables would show the targets of other jobs, too.
const everything = [...flat.flatMap((panel) => panel.targets ?? []), ...dashboard.annotations.list].map(({ expr }) => expr);
const selectors = everything.flatMap((expr) => expr.match(/\b(app|process)_\w+\{[^}]*\}/g) ?? []);
const unselected = selectors.filter((selector) => !["job", "namespace", "instance"].every((name) => selector.includes(`${name}=~"$${name}"`)));
if (selectors.length === 0 || unselected.length > 0) {
    fail(unselected.map((selector) => `does not select by job, namespace and instance: ${selector}`));
}
console.log(`ok      ${selectors.length} selectors have the variables job, namespace and instance`);

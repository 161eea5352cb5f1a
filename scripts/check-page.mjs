#!/usr/bin/env node
// Uses the page at / in Chromium, as a person would: with fault injection on and off, without JavaScript,
// across a restart, and behind a proxy that leads to another process each time.
// Usage: scripts/check-page.mjs [SERVER...]       (default: event-loop tiny-http)
// PROGRAM is another binary, CHROMIUM another browser, ONLY a part of the name of the checks to run,
// SCREENSHOTS a folder for pictures of the page.
// Needs Chromium and npm; the library that drives it and axe come from there into target/.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const tools = join(root, "target/check-page");
if (!existsSync(join(tools, "node_modules/axe-core")) || !existsSync(join(tools, "node_modules/puppeteer-core"))) {
    // The lock file has the versions and hashes. A later puppeteer-core needs a later Node.js than Debian has.
    cpSync(join(root, "scripts/requirements/npm-page"), tools, { recursive: true });
    execFileSync("npm", ["ci", "--silent", "--ignore-scripts"], { cwd: tools });
}
const require = createRequire(join(tools, "index.js"));
const puppeteer = require("puppeteer-core");
const axe = require.resolve("axe-core/axe.min.js");
const program = process.env.PROGRAM ?? join(root, "target/release/tiny-probe");
const servers = process.argv.length > 2 ? process.argv.slice(2) : ["event-loop", "tiny-http"];

async function start(server, settings = {}) {
    const env = { ...process.env, SERVER: server, LISTEN: "127.0.0.1:0", ...settings };
    const child = spawn(program, { env, stdio: ["ignore", "ignore", "pipe"] });
    const kill = () => child.kill("SIGKILL");
    const startLimit = setTimeout(kill, 30_000);
    let log = "";
    child.stderr.setEncoding("utf8");
    for await (const text of child.stderr.iterator({ destroyOnReturn: false })) {
        log += text;
        const url = / on (http:\S+)/.exec(log)?.[1];
        if (url) {
            child.stderr.resume();
            clearTimeout(startLimit);
            return {
                url,
                pid: child.pid,
                async stop() {
                    const stopLimit = setTimeout(kill, 30_000);
                    child.kill("SIGCONT");
                    child.kill();
                    const [, signal] = await once(child, "exit");
                    clearTimeout(stopLimit);
                    assert.notEqual(signal, "SIGKILL", "after SIGTERM it did not end within 30 s");
                },
            };
        }
    }
    throw Error(`${program} did not start within 30 s: ${log}`);
}

if (servers.length > 1) {
    // At the same time, each with its own browser, because they wait most of the time.
    const script = fileURLToPath(import.meta.url);
    const runs = servers.map((server) => once(spawn(process.execPath, [script, server], { stdio: "inherit" }), "exit"));
    process.exit((await Promise.all(runs)).every(([code]) => code === 0) ? 0 : 1);
}

const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// Opens a tab. Its `close` fails if there was an error, a message on the console, or a request to another origin.
async function open(url, { javascript = true } = {}) {
    const page = await browser.newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(error.stack));
    page.on("console", (message) => {
        // The browser itself reports each failed request, which is what faults are for.
        if (!message.text().startsWith("Failed to load resource")) {
            faults.push(`${message.type()}: ${message.text()}`);
        }
    });
    page.on("request", (request) => {
        if (!request.url().startsWith("data:") && new URL(request.url()).origin !== new URL(url).origin) {
            faults.push(`a request to ${request.url()}`);
        }
    });
    await page.evaluateOnNewDocument(() => {
        addEventListener("securitypolicyviolation", ({ violatedDirective }) => console.error(`CSP: ${violatedDirective}`));
    });
    await page.setJavaScriptEnabled(javascript);
    await page.setViewport({ width: 1280, height: 900 });
    await page.goto(url);
    return {
        page,
        text: (id) => page.$eval(`#${id}`, (element) => element.innerText),
        shows: (id) => page.$eval(`#${id}`, (element) => element.checkVisibility()),
        click: (id) => page.$eval(`#${id}`, (element) => element.click()),
        apply: () => page.$eval("#faults .main", (element) => element.click()),
        // Chooses a kind of alert by its change, and waits for the command.
        async choose(change, command) {
            await page.select("#kind", change);
            await this.until("command", RegExp(`${command.replace("?", "[?]")}'$`));
        },
        fill: (name, value) => page.$eval(`#faults [name=${name}]`, (element, value) => {
            element.value = value;
            element.dispatchEvent(new Event("input", { bubbles: true }));
        }, value),
        // Waits until the text of an element has a pattern.
        async until(id, pattern, seconds = 15) {
            const wanted = { source: pattern.source, id };
            const found = ({ source, id }) => RegExp(source).test(document.getElementById(id).innerText);
            await page.waitForFunction(found, { timeout: seconds * 1000 }, wanted).catch(async () => {
                const text = await page.$eval(`#${id}`, (element) => element.innerText);
                throw Error(`after ${seconds} s #${id} does not have ${pattern}: ${text}`);
            });
        },
        async close() {
            assert.deepEqual(faults, []);
            await page.close();
        },
    };
}

const metrics = async (url, pattern) => pattern.exec(await (await fetch(`${url}/metrics`)).text())?.[1];
const PROBES = /^app_request_count_total{endpoint="\/probe",http_status="200",method="GET"} (\d+)/m;

const checks = {
    async "a request moves the counter and a bucket"(server) {
        const service = await start(server);
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.click("one");
        await tab.until("log", /200[^]*I'm ok!/);
        await tab.until("changes", /app_request_count_total[^]*0 → 1\s*\+1\s*Counter\. Requests so far/);
        assert.match(await tab.text("changes"), /_bucket[^]*le="0.005"} …\s*15 lines\s*\+1\s*Bucket\. Took more than 0 s and at most 0.005 s/);
        assert.equal(await metrics(service.url, PROBES), "1");
        await tab.until("bars", /0\.005\s+1\s+1\n/);
        await tab.click("ten");
        // A scrape can come in between.
        await tab.until("changes", /_count_total.*http_status="200"[^]*\d → 11\n/);
        await tab.until("times", /p50\s*2\.5 ms/);
        await tab.until("rates", /with 200[^]*Error ratio\s*0%/);
        assert.equal(await metrics(service.url, PROBES), "11");
        assert.equal(await tab.shows("faults"), false);
        assert.match(await tab.text("off"), /FAULT_INJECTION=on/);
        assert.match(await tab.text("settings"), /^fail-rate=0$/m);
        const promql = await tab.page.$eval("#times code", (element) => element.textContent);
        await tab.page.$eval("#times .copy", (element) => element.click());
        assert.equal(await tab.page.evaluate(() => getSelection().toString().replaceAll("\n", "")), promql);
        await tab.page.$eval("details", (element) => (element.open = true));
        await tab.until("own_changes", /endpoint="\/metrics"[^]*Counter/);
        await tab.close();
        await service.stop();
    },

    async "a fault is set, seen, ends by itself, and is taken back"(server) {
        const service = await start(server, { FAULT_INJECTION: "on" });
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.page.waitForSelector("#fields input[name=fail-rate]");
        await tab.choose("fail-rate=0.5", `${service.url}/faults?fail-rate=0.5&for=3m`);
        await tab.fill("fail-rate", "1");
        await tab.fill("for", "6s");
        assert.equal(await tab.text("command"), `curl -X PUT '${service.url}/faults?fail-rate=1&for=6s'`);
        await tab.apply();
        await tab.until("told", /^Done/);
        await tab.until("left", /Ends in [1-6] s/);
        await tab.click("one");
        await tab.until("log", /500/);
        await tab.until("changes", /http_status="500"/);
        await tab.until("rates", /Error ratio\s*100%/);
        await tab.until("left", /^$/);
        await tab.page.waitForFunction(() => document.querySelector("[name=fail-rate]").value === "0");
        assert.equal(await (await fetch(`${service.url}/faults`)).text(), "fail-rate=0\nfail-with=500\nfail-latency=0s\nslow-rate=0\nlatency=0s\nslow-latency=9s\nwork=0s\n");

        // The next change ends by itself, too.
        await tab.fill("latency", "many");
        assert.match(await tab.text("command"), /[?]latency=many&for=6s'$/);
        await tab.apply();
        await tab.until("told", /latency=many: expected a duration/);
        await tab.choose("fail-rate=0.5", "/faults?fail-rate=0.5&for=3m");
        await tab.fill("for", "");
        await tab.apply();
        await tab.until("told", /^Done/);
        assert.match(await (await fetch(`${service.url}/faults`)).text(), /^fail-rate=0.5\n[^]*work=0s\n$/);
        await tab.until("changes", /app_configured_fail_ratio/);
        await tab.until("changes", /app_configured_fail_ratio[^]*0 → 0.5\s*\+0.5/);
        await tab.click("back");
        await tab.until("changes", /app_configured_fail_ratio[^]*0.5 → 0\s*-0.5/);
        assert.match(await (await fetch(`${service.url}/faults`)).text(), /^fail-rate=0\n/);
        assert.equal(await tab.page.$eval("#kind", (element) => element.value), "");
        // Another client changes the setting.
        await fetch(`${service.url}/faults?work=1ms`, { method: "PUT" });
        await tab.page.waitForFunction(() => document.querySelector("[name=work]").value === "1ms");

        await tab.page.select("#own [name=fail-with]", "503");
        await tab.page.type("[name=delay]", "1s");
        await tab.page.keyboard.press("Enter");
        await tab.until("log", /fail-with=503&delay=1s/);
        await tab.until("changes", /http_status="503"/);
        await tab.page.$eval("[name=delay]", (element) => (element.value = "<img src=x>"));
        await tab.click("one");
        await tab.until("log", /400[^]*delay=%3Cimg/);
        assert.equal(await tab.page.$("#log img"), null);
        await tab.close();
        await service.stop();
    },

    async "every target can be changed and taken back"(server) {
        const service = await start(server, { FAULT_INJECTION: "all" });
        const tab = await open(service.url);
        await tab.page.waitForSelector("#fields input[name=fail-rate]");
        const groups = await tab.page.$$eval("#kind optgroup", (all) => all.map(({ label }) => label));
        assert.deepEqual(groups, ["probe", "metrics", "healthz", "readyz", "process"]);
        await tab.choose("freeze=1m&for=", "/faults/process?freeze=1m");
        const names = await tab.page.$$eval("#fields [name]", (all) => all.map(({ name }) => name));
        assert.deepEqual(names, ["memory", "series", "open-files", "freeze", "exit-after", "exit-code"]);
        await tab.choose("series=20000", "/faults/process?series=20000&for=3m");
        await tab.apply();
        if (server === "tiny-http") {
            await tab.until("told", /tiny-http: start tiny-probe with --server event-loop/);
        } else {
            await tab.until("changes", /app_extra[^]*20000 lines/);
            await tab.until("settings", /^process: memory=0B series=20000 .*for=\d+s/);
            await tab.until("left", /Ends in 1\d\d s/);
            // The page keeps working with so many series.
            await tab.click("one");
            await tab.until("changes", /_count_total[^]*0 → 1\s*\+1/);
        }
        await tab.page.select("#target", "readyz");
        await tab.page.waitForSelector("#fields input[name=fail-rate]");
        await tab.fill("fail-rate", "1");
        await tab.apply();
        await tab.until("settings", /readyz: fail-rate=1 /);
        assert.equal((await fetch(`${service.url}/readyz`)).status, 500);
        await tab.click("back");
        await tab.page.waitForFunction(() => document.getElementById("settings").hidden);
        assert.equal((await fetch(`${service.url}/readyz`)).status, 200);
        await tab.close();
        await service.stop();
    },

    async "scrapes that fail or are late are reported, and there is one at a time"(server) {
        const service = await start(server, { FAULT_INJECTION: "all" });
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        let scrapes = 0, most = 0;
        const isScrape = (request) => request.url().endsWith("/metrics");
        tab.page.on("request", (request) => isScrape(request) && (most = Math.max(most, ++scrapes)));
        const over = (request) => isScrape(request) && scrapes--;
        tab.page.on("requestfinished", over);
        tab.page.on("requestfailed", over);
        const change = async (query) => {
            const { ok } = await fetch(`${service.url}/faults/metrics?${query}&for=1m`, { method: "PUT" });
            assert.ok(ok, query);
        };
        await change("fail-rate=1");
        await tab.until("state", /^Scrape failed: status 500/);
        // The body of a failure has no samples.
        await change("fail-with=200");
        await tab.until("state", /^Scrape failed: status 200, no metrics/);
        if (server === "event-loop") {
            for (const how of ["reset", "cut"]) {
                await change(`fail-with=${how}`);
                await tab.until("state", /^Scrape failed: (Failed to fetch|network error)/);
            }
        }
        await change("fail-rate=0&latency=4s");
        await tab.until("state", /^No response yet/);
        await fetch(`${service.url}/faults`, { method: "DELETE" });
        await tab.until("state", /^Live/);
        assert.equal(most, 1);
        await tab.close();
        await service.stop();
    },

    async "requests without a response are reported"(server) {
        // The plain loop cannot reset.
        const settings = server === "event-loop" ? { FAIL_RATE: "1", FAIL_WITH: "reset" } : { FAIL_RATE: "1" };
        const service = await start(server, settings);
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.click("one");
        await tab.until("log", server === "event-loop" ? /none\s+Refused, reset or closed/ : /500\s+Failed, as configured/);
        await tab.until("state", /^Live/);
        await tab.close();
        await service.stop();
    },

    async "never more than four requests at a time, and none is waited for in vain"(server) {
        const service = await start(server, { LATENCY: "50m" });
        const tab = await open(service.url);
        let open_ = 0, most = 0;
        tab.page.on("request", (request) => request.url().endsWith("/probe") && (most = Math.max(most, ++open_)));
        const over = (request) => request.url().endsWith("/probe") && open_--;
        tab.page.on("requestfinished", over);
        tab.page.on("requestfailed", over);
        await tab.page.$eval("#rate", (element) => (element.value = 50));
        await tab.click("ten");
        await tab.click("steady");
        // As many as the loop answers at the same time.
        for (const end = Date.now() + 10_000; most < 4 && Date.now() < end;) {
            await tab.page.waitForFunction(() => true, { polling: 100 });
        }
        assert.equal(most, 4);
        await tab.click("steady");
        await tab.click("stop");
        await tab.until("log", /Not waited for/);
        await tab.page.waitForFunction(() => !queued && !open.size);
        assert.equal(most, 4);
        await tab.close();
        await service.stop();
    },

    async "a restart and a process that does not answer are reported"(server) {
        let service = await start(server);
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.click("ten");
        await tab.until("changes", /→ 10/);
        process.kill(service.pid, "SIGSTOP");
        await tab.until("state", /^No response yet/);
        await tab.until("state", /^Scrape failed/);
        process.kill(service.pid, "SIGCONT");
        await tab.until("state", /^Live/);
        const { host } = new URL(service.url);
        await service.stop();
        await tab.until("state", /^Scrape failed/);
        await tab.click("one");
        await tab.until("log", /none/);
        service = await start(server, { LISTEN: host, FAULT_INJECTION: "on" });
        await tab.until("state", /^Restarted/);
        await tab.page.waitForSelector("#fields input[name=fail-rate]");
        await tab.click("one");
        await tab.until("changes", /0 → 1/);
        // Not 11 - 10, and nothing below 0.
        await tab.until("bars", /0\.005\s+11\s+1\n/);
        await tab.close();
        await service.stop();
    },

    async "another process behind the same address is reported"(server) {
        // The kernel tells start times in hundredths of a second. Two processes that started in the same
        // one cannot be told apart.
        const started = ({ url }) => metrics(url, /^process_start_time_seconds (.*)/m);
        const services = [await start(server), await start(server)];
        while (await started(services[0]) === await started(services[1])) {
            await services.pop().stop();
            services.push(await start(server));
        }
        let turn = 0;
        const proxy = createServer((incoming, outgoing) => {
            const { port } = new URL(services[turn++ % 2].url);
            const { method, url, headers } = incoming;
            const onward = request({ host: "127.0.0.1", port, method, path: url, headers, agent: false }, (response) => {
                outgoing.writeHead(response.statusCode, response.headers);
                response.pipe(outgoing);
            });
            incoming.pipe(onward);
        });
        await once(proxy.listen(0, "127.0.0.1"), "listening");
        const tab = await open(`http://127.0.0.1:${proxy.address().port}/`);
        await tab.until("state", /^Several processes answer/);
        assert.doesNotMatch(await tab.text("rates"), /-\d|[1-9]\d*e/);
        await tab.close();
        proxy.closeAllConnections();
        proxy.close();
        await Promise.all(services.map((service) => service.stop()));
    },

    async "a hidden tab does not scrape"(server) {
        const service = await start(server);
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.page.evaluate(() => {
            Object.defineProperty(document, "hidden", { configurable: true, value: true });
        });
        const scrapes = /endpoint="\/metrics",http_status="200",method="GET"} (\d+)/;
        // One may be on its way. After that, only the scrapes of this check are counted.
        await tab.page.waitForFunction(() => !busy);
        const before = Number(await metrics(service.url, scrapes));
        await new Promise((resolve) => setTimeout(resolve, 2500));
        assert.equal(Number(await metrics(service.url, scrapes)), before + 1);
        await tab.page.evaluate(() => {
            delete document.hidden;
            document.dispatchEvent(new Event("visibilitychange"));
        });
        await tab.page.waitForFunction((time) => shown.points.at(-1).time > time, {}, Date.now() / 1000);
        await tab.close();
        await service.stop();
    },

    async "20,000 series and labels that look like markup"(server) {
        const service = await start(server, { APP_VERSION: '<img src=x onerror="alert(1)">' });
        const tab = await open(service.url);
        await tab.page.setRequestInterception(true);
        let scrape = 0;
        tab.page.on("request", (request) => {
            if (!request.url().endsWith("/metrics")) {
                return request.continue();
            }
            scrape++;
            const extra = Array.from({ length: 20_000 }, (_, id) => `app_extra{id="${id}"} ${scrape}`).join("\n");
            const odd = `odd{a="<b>\\"}\\n</b>"} ${scrape}`;
            const body = `# TYPE app_extra gauge\n# TYPE odd gauge\n# HELP odd <script>alert(1)</script>\n${extra}\n${odd}\nprocess_start_time_seconds 1\n`;
            return request.respond({ headers: { Date: new Date().toUTCString() }, body });
        });
        await tab.until("changes", /app_extra{id="0"} …[^]*20000 lines/);
        assert.match(await tab.text("changes"), /<b>[^]*<script>alert\(1\)<\/script>/);
        assert.equal(await tab.page.$("#changes img, #changes script, header img"), null);
        await tab.page.setRequestInterception(false);
        await tab.close();
        await service.stop();
    },

    async "without JavaScript the page has its facts and links"(server) {
        const service = await start(server, { FAIL_RATE: "0.25", APP_VERSION: "7" });
        const tab = await open(service.url, { javascript: false });
        const text = await tab.page.$eval("body", (element) => element.innerText);
        assert.match(text, /tiny-probe \d[^]*Host \S+, version 7, config develop[^]*fail-rate=0.25/);
        const links = await tab.page.$$eval("a", (all) => all.map((link) => link.getAttribute("href")));
        assert.deepEqual(links, ["/probe", "/metrics", "/healthz", "/readyz"]);
        assert.equal(await tab.shows("one"), false);
        assert.equal(await tab.shows("off"), true);
        await tab.close();
        await service.stop();

        const changeable = await start(server, { FAULT_INJECTION: "on" });
        const other = await open(changeable.url, { javascript: false });
        assert.equal(await other.shows("off"), false);
        assert.equal(await other.shows("settings"), true);
        await other.close();
        await changeable.stop();
    },

    async "the keyboard reaches every control, and nothing moves by itself"(server) {
        const service = await start(server, { FAULT_INJECTION: "on" });
        const tab = await open(service.url);
        await tab.page.waitForSelector("#fields input");
        await tab.page.evaluate(() => {
            window.reached = new Set();
            document.addEventListener("focusin", ({ target }) => reached.add(target));
        });
        await tab.page.focus("a");
        for (let presses = 0; presses < 60; presses++) {
            await tab.page.keyboard.press("Tab");
        }
        const missed = await tab.page.evaluate(() => [...document.querySelectorAll("a, button, input, select, summary")]
            .filter((control) => !control.disabled && !reached.has(control)).map(({ outerHTML }) => outerHTML));
        assert.deepEqual(missed, []);
        await tab.page.focus("#one");
        await tab.page.keyboard.press("Enter");
        await tab.until("log", /200/);
        const moving = await tab.page.evaluate(() => [...document.querySelectorAll("*")]
            .filter((element) => getComputedStyle(element).transitionDuration !== "0s").length + document.getAnimations().length);
        assert.equal(moving, 0);
        await tab.close();
        await service.stop();
    },

    async "axe finds nothing, and nothing is wider than the window"(server) {
        const service = await start(server, { FAULT_INJECTION: "all", LATENCY: "60ms" });
        for (const scheme of ["light", "dark"]) {
            const tab = await open(service.url);
            await tab.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
            await tab.page.waitForSelector("#fields input");
            await tab.click("ten");
            await tab.choose("fail-rate=0.5", "fail-rate=0.5&for=3m");
            await tab.until("changes", /_sum/);
            for (const width of [360, 800, 1024, 1280, 1600]) {
                await tab.page.setViewport({ width, height: 900 });
                assert.ok(await tab.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width} px`);
                if (process.env.SCREENSHOTS) {
                    await tab.page.screenshot({ path: join(process.env.SCREENSHOTS, `page-${scheme}-${width}.png`), fullPage: true });
                }
            }
            // Evaluated by the debugger, which the page's policy does not bind.
            await tab.page.evaluate(readFileSync(axe, "utf8"));
            const { violations } = await tab.page.evaluate(() => axe.run());
            assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`), []);
            await tab.close();
        }
        await service.stop();
    },
};

let failed = 0;
for (const server of servers) {
    for (const [name, check] of Object.entries(checks)) {
        if (process.env.ONLY && !name.includes(process.env.ONLY)) {
            continue;
        }
        try {
            await check(server);
            console.log(`ok      ${server}: ${name}`);
        } catch (error) {
            console.error(`FAILED  ${server}: ${name}\n${error.stack}`);
            failed++;
        }
    }
}
await browser.close();
process.exit(failed ? 1 : 0);

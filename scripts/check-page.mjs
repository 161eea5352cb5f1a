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
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const tools = join(root, "target/check-page");
if (!existsSync(join(tools, "node_modules/axe-core")) || !existsSync(join(tools, "node_modules/puppeteer-core"))) {
    mkdirSync(tools, { recursive: true });
    // A later puppeteer-core needs a later Node.js than Debian has.
    execFileSync("npm", ["install", "--silent", "--no-save", "--ignore-scripts", "--prefix", tools,
        "puppeteer-core@24.43.1", "axe-core@4.14.1"]);
}
const require = createRequire(join(tools, "index.js"));
const puppeteer = require("puppeteer-core");
const axe = require.resolve("axe-core/axe.min.js");
const program = process.env.PROGRAM ?? join(root, "target/release/tiny-probe");
const servers = process.argv.length > 2 ? process.argv.slice(2) : ["event-loop", "tiny-http"];

async function start(server, settings = {}) {
    const env = { ...process.env, SERVER: server, LISTEN: "127.0.0.1:0", ...settings };
    const child = spawn(program, { env, stdio: ["ignore", "ignore", "pipe"] });
    let log = "";
    child.stderr.setEncoding("utf8");
    for await (const text of child.stderr.iterator({ destroyOnReturn: false })) {
        log += text;
        const url = / on (http:\S+)/.exec(log)?.[1];
        if (url) {
            child.stderr.resume();
            return {
                url,
                pid: child.pid,
                async stop() {
                    child.kill("SIGCONT");
                    child.kill();
                    await once(child, "exit");
                },
            };
        }
    }
    throw Error(`${program} did not start: ${log}`);
}

const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// A tab that remembers what must not happen.
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
        await tab.until("changes", /app_request_count_total[^]*status and method[^]*0 → 1\s*\+1/);
        assert.match(await tab.text("changes"), /_bucket[^]*le="0.005"} …[^]*more than 0 s and at most 0.005 s[^]*15 lines\s*\+1/);
        assert.equal(await metrics(service.url, PROBES), "1");
        await tab.until("bars", /0\.005\s+1\s+1\n/);
        await tab.click("ten");
        await tab.until("changes", /1 → 11|10 → 11/);
        await tab.until("times", /p50\s*2\.5 ms/);
        await tab.until("rates", /with 200[^]*Error ratio\s*0%/);
        assert.equal(await metrics(service.url, PROBES), "11");
        assert.equal(await tab.shows("faults"), false);
        assert.match(await tab.text("off"), /FAULT_INJECTION=on/);
        assert.match(await tab.text("settings"), /^fail-rate=0$/m);
        const promql = await tab.page.$eval("#times code", (element) => element.textContent);
        await tab.page.$eval("#times .copy", (element) => element.click());
        assert.equal(await tab.page.evaluate(() => getSelection().toString().replaceAll("\n", "")), promql);
        assert.equal(await tab.text("noise") > 0, true);
        await tab.close();
        await service.stop();
    },

    async "a fault is set, seen, ends by itself, and is taken back"(server) {
        const service = await start(server, { FAULT_INJECTION: "on" });
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.page.waitForSelector("#fields input[name=fail-rate]");
        await tab.page.select("#kind", "2");
        await tab.page.select("#for", "30s");
        // The shortest time that the list has is too long for a check.
        await tab.page.$eval("#for", (element) => {
            element.selectedOptions[0].value = "3s";
            element.dispatchEvent(new Event("change"));
        });
        assert.equal(await tab.text("command"), `curl -X PUT '${service.url}/faults?fail-rate=1&for=3s'`);
        await tab.click("apply");
        await tab.until("told", /^In force/);
        await tab.until("left", /Ends in [123] s/);
        await tab.click("one");
        await tab.until("log", /500/);
        await tab.until("changes", /http_status="500"/);
        await tab.until("rates", /Error ratio\s*100%/);
        await tab.until("left", /^$/);
        await tab.page.waitForFunction(() => document.querySelector("[name=fail-rate]").value === "0");
        assert.equal(await (await fetch(`${service.url}/faults`)).text(), "fail-rate=0\nfail-with=500\nfail-latency=0s\nslow-rate=0\nlatency=0s\nslow-latency=9s\nwork=0s\n");

        await tab.page.$eval("[name=latency]", (element) => {
            element.value = "many";
            element.dispatchEvent(new Event("input", { bubbles: true }));
        });
        await tab.click("apply");
        await tab.until("told", /latency=many: expected a duration/);
        await tab.page.select("#kind", "1");
        await tab.page.select("#for", "");
        await tab.click("apply");
        await tab.until("told", /^In force/);
        assert.match(await (await fetch(`${service.url}/faults`)).text(), /^fail-rate=0.2\n[^]*work=0s\n$/);
        await tab.until("changes", /app_configured_fail_ratio/);
        await tab.click("back");
        await tab.until("told", /^As at the start/);
        assert.match(await (await fetch(`${service.url}/faults`)).text(), /^fail-rate=0\n/);
        // Somebody else changes it.
        await fetch(`${service.url}/faults?work=1ms`, { method: "PUT" });
        await tab.page.waitForFunction(() => document.querySelector("[name=work]").value === "1ms");

        await tab.page.select("[name=status]", "503");
        await tab.page.type("[name=delay]", "1s");
        await tab.click("one");
        await tab.until("log", /status=503&delay=1s/);
        await tab.until("changes", /http_status="503"/);
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
        await tab.page.waitForFunction(() => !document.getElementById("stop").disabled);
        // As many as the loop answers at the same time.
        for (const end = Date.now() + 10_000; most < 4 && Date.now() < end;) {
            await tab.page.waitForFunction(() => true, { polling: 100 });
        }
        assert.equal(most, 4);
        await tab.click("steady");
        await tab.click("stop");
        await tab.until("log", /Not waited for/);
        await tab.page.waitForFunction(() => document.getElementById("stop").disabled);
        assert.equal(most, 4);
        await tab.close();
        await service.stop();
    },

    async "a restart and a process that does not answer are told"(server) {
        let service = await start(server);
        const tab = await open(service.url);
        await tab.until("state", /^Live/);
        await tab.click("ten");
        await tab.until("changes", /→ 10/);
        process.kill(service.pid, "SIGSTOP");
        await tab.until("state", /^Waiting for a scrape/);
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

    async "another process behind the same address is told"(server) {
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
        assert.deepEqual(links, ["/probe", "/metrics", "/healthz"]);
        assert.equal(await tab.shows("one"), false);
        await tab.page.setJavaScriptEnabled(true);
        await tab.close();
        await service.stop();
    },

    async "axe finds nothing, and nothing is wider than the window"(server) {
        const service = await start(server, { FAULT_INJECTION: "on", LATENCY: "60ms" });
        for (const scheme of ["light", "dark"]) {
            const tab = await open(service.url);
            await tab.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
            await tab.page.waitForSelector("#fields input");
            await tab.click("ten");
            await tab.page.select("#kind", "2");
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

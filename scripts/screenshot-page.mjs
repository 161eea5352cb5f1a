#!/usr/bin/env node
// Takes a picture of the page at / during an incident, half a minute after it began.
// Usage: FAULT_INJECTION=on LATENCY=60ms scripts/with-service.sh scripts/screenshot-page.mjs FILE.webp
// Needs what scripts/check-page.mjs has installed.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const tools = join(dirname(fileURLToPath(import.meta.url)), "../target/check-page");
const puppeteer = createRequire(join(tools, "index.js"))("puppeteer-core");
const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage();
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
await page.setViewport({ width: 1280, height: 1000 });
await page.goto(process.env.BASE_URL);
await page.waitForSelector("#fields input");
await page.$eval("#rate", (element) => (element.value = 10));
await page.click("#steady");
await pause(25);
await page.select("#kind", "fail-rate=0.5");
await page.waitForFunction(() => document.getElementById("command").innerText.includes("fail-rate"));
await page.click("#faults .main");
await pause(30);
await page.screenshot({ path: process.argv[2], type: "webp", quality: 60, fullPage: true });
await browser.close();

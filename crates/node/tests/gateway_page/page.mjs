// The gateway's live page in a real browser, while what stands behind the gateway breaks and mends.
// Everything is waited for by what the page shows, within a bound.
import assert from "node:assert";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const WINDOW = { width: 1100, height: 700 };
const WITHIN_MS = 20_000;
// Shares of zones come back by a tenth a second, breakers wait up to ten seconds for a trial.
const RECOVERY_MS = 60_000;
const told = JSON.parse(process.argv[2]);

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Has the test on the other side of the pipe turn the world, and returns its answer. */
async function turn(words) {
  console.log(`? ${words}`);
  const { value, done } = await lines.next();
  assert(!done, "the world ended");
  return JSON.parse(value);
}

const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launchPersistentContext(told.profile, {
  executablePath: "/usr/bin/chromium", headless: true, args: flags, viewport: WINDOW,
});
const page = browser.pages()[0];
const complaints = [];
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) complaints.push(`${message.text()} (${message.location().url})`);
});
page.on("pageerror", (error) => complaints.push(error.stack));

async function sees(what, locator, timeout = WITHIN_MS, state = "visible") {
  try {
    await locator.first().waitFor({ timeout, state });
  } catch (error) {
    const text = await page.innerText("body");
    throw new Error(`not seen: ${what}\n${error}\nconsole: ${complaints.join("\n")}\n${text}`);
  }
  console.log(`seen: ${what}`);
}

const verdict = (name) => page.getByRole("heading", { level: 1, name });
const alarm = (text) => page.getByRole("list", { name: "What is wrong" }).getByRole("listitem").filter({ hasText: text });
const service = (name) => page.getByRole("region", { name, exact: true });
const says = (name, text) => service(name).filter({ hasText: text });
const first = (name) => page.getByRole("region").first().and(service(name));
const row = (name, header, text) =>
  service(name).getByRole("row").filter({ has: page.getByRole("rowheader", { name: header }) }).filter({ hasText: text });
/** The row's cell under "Req/s", when something flows. */
const flows = (name, header) => row(name, header).getByRole("cell").nth(4).filter({ hasText: /^[1-9]/ });
const fact = (label) => page.locator("header dl > div").filter({ hasText: label });

/** Waits until the gateway has been asked once more and all of it is shown. */
async function nextPoll() {
  const before = await fact("UTC").innerText();
  await page.waitForFunction(
    (before) => ![...document.querySelectorAll("header dl > div")].some((fact) => fact.innerText === before),
    before, { timeout: WITHIN_MS });
}

async function well() {
  await page.goto(told.url);
  await sees("all is well", verdict("All is well"));
  await sees("where the gateway stands", page.getByText("Atoll gateway in zone a", { exact: true }));
  await sees("services in the order of their names", first("catalog"));
  for (const name of ["catalog", "orders"]) {
    await sees(`${name} is well`, says(name, /well/));
    for (const zone of ["a", "b", "c"]) await sees(`${name}'s zone ${zone}`, row(name, new RegExp(`^${zone} `), "2/2 open"));
  }
  const zones = await service("catalog").getByRole("rowheader").evaluateAll((heads) =>
    heads.map((head) => head.textContent).filter((text) => !text.includes(":")));
  assert.deepStrictEqual(zones, ["a here", "b 2nd", "c 2nd"], "the closest zone comes first");
}

async function traffic() {
  await turn("traffic");
  await sees("requests a second in all", fact("Requests/s").filter({ hasText: /Requests\/s\s*[1-9]/ }));
  await sees("requests a second of a zone", flows("catalog", /^a /));
  await sees("requests a second of a server", flows("orders", told.servers.orders.a[0]));
  await sees("a latency", service("catalog").getByText(/^\d[\d.]* ms$/));
  await sees("a trend", service("catalog").locator("svg path[d*='L']"), WITHIN_MS, "attached");
}

async function manyServers() {
  // Names of zones that come over the API may be anything.
  const wicked = "<img src=x onerror=\"document.body.textContent='owned'\">";
  const more = await turn("more servers");
  const change = async (method, address, body) => {
    const answer = await fetch(`${told.url}services/catalog/servers/${address}`, { method, body });
    assert(answer.ok, await answer.text());
  };
  for (const address of more) await change("PUT", address, JSON.stringify({ zone: wicked }));
  await sees("a name as it is written", service("catalog").getByText(wicked, { exact: true }));
  assert.strictEqual(await page.locator("img").count(), 0);
  const button = service("catalog").getByRole("button", { name: `${more.length + 6} servers` });
  const one = row("catalog", more[0]);
  await sees("many servers that are well, folded", button.and(page.locator("[aria-expanded=false]")));
  await sees("none of them", one, WITHIN_MS, "hidden");
  await button.focus();
  await page.keyboard.press("Enter");
  await sees("all of them", one);
  await nextPoll();
  await sees("all of them after another poll", button.and(page.locator("[aria-expanded=true]:focus")));
  await sees("them still there", one);
  for (const address of more) await change("DELETE", address);
  await sees("the zone gone with its servers", service("catalog").getByText(wicked), WITHIN_MS, "hidden");
  await sees("all is well", verdict("All is well"));
}

async function zoneLost() {
  await turn("kill zone a");
  for (const name of ["catalog", "orders"]) {
    for (const address of told.servers[name].a) await sees(`${address} is unreachable`, row(name, address, "unreachable"));
    await sees(`${name}'s zone has no open server`, row(name, /^a /, "0/2 open"));
    await sees("the reason beside the name", says(name, "zone a has no open server"));
    await sees("another zone in its place", flows(name, /^b /));
  }
  await sees("how bad it is", verdict("2 services are weakened"));
  await sees("a list of those that are weakened", alarm(/^catalog: zone a has no open server/));
}

async function serviceBroken() {
  await sees("catalog first", first("catalog"));
  // What is read must stay in its place while services change theirs; in a low window, which has room to scroll.
  await page.setViewportSize({ width: 1100, height: 300 });
  const read = row("catalog", /^a /);
  await read.evaluate((node) => scrollBy(0, node.getBoundingClientRect().top - document.querySelector("header").offsetHeight - 4));
  const { y: before } = await read.boundingBox();
  await turn("orders fail");
  await sees("an open breaker", says("orders", "breaker open: requests are refused"));
  await sees("that service first", first("orders"));
  await sees("how bad it is", verdict("orders is in trouble"));
  await sees("the list, the worst first", alarm(/^orders: breaker/).and(page.locator("li:first-child")));
  await sees("refusals", service("orders").locator("dl > div").filter({ hasText: "Refused/s" }).filter({ hasText: /[1-9]/ }));
  const { y: after } = await read.boundingBox();
  assert(Math.abs(after - before) < 3, `what was read moved from ${before} to ${after}`);
  await page.setViewportSize(WINDOW);
  assert.strictEqual(await page.title(), "✕ orders is in trouble – a");
  await sees("it said aloud", page.getByRole("status").filter({ hasText: "orders is in trouble" }), WITHIN_MS, "attached");
}

async function narrow() {
  await page.setViewportSize({ width: 390, height: 800 });
  await nextPoll();
  const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert(content <= window, `a page ${content} wide in a window of ${window}`);
  await page.setViewportSize(WINDOW);
}

async function mended() {
  await turn("orders work");
  await turn("start zone a");
  await sees("a closed breaker", service("orders").locator("dl > div").filter({ hasText: /Breaker\s*closed/ }), RECOVERY_MS);
  for (const name of ["catalog", "orders"]) await sees(`${name}'s zone again`, row(name, /^a /, "2/2 open"), RECOVERY_MS);
  await sees("all is well again", verdict("All is well"), RECOVERY_MS);
  await sees("no list", page.getByRole("list", { name: "What is wrong" }).getByRole("listitem"), WITHIN_MS, "hidden");
  await sees("the order of names again", first("catalog"), RECOVERY_MS);
}

async function fileBroken() {
  const { file, line } = await turn("break the file");
  await sees("the complaint with file and line", alarm(`${file}:${line}: there is no setting "time_out"`));
  await sees("the headline", verdict("The file is refused"));
  await turn("mend the file");
  await sees("no complaint", verdict("All is well"));
}

async function stopped() {
  assert.deepStrictEqual(complaints, [], "the browser complained");
  await turn("stop");
  await sees("that it drains", verdict("Draining"));
  await turn("let go");
  await sees("that the data is old", verdict(/^Old data: no answer for \d+ seconds$/));
  await sees("since when", page.getByText(/What stands below is from \d\d:\d\d:\d\d UTC\. It cannot be reached\./));
  await sees("a growing age", verdict(/no answer for ([6-9]|\d\d) seconds$/));
  const faded = await page.locator("main").evaluate((node) => Number(getComputedStyle(node).opacity));
  assert(faded < 0.7, "old numbers look live");
  // Counts begin anew with the new process: no rate may be their difference from the old one's.
  await fact("Requests/s").locator("dd").evaluate((node) => {
    globalThis.shown = [];
    new MutationObserver(() => shown.push(node.textContent)).observe(node, { childList: true });
  });
  await turn("start");
  await sees("life again", verdict("All is well"), RECOVERY_MS);
  await sees("the new process's requests", flows("catalog", /^a /));
  const shown = await page.evaluate(() => globalThis.shown);
  assert(shown.length > 0 && shown.every((text) => /^(–|\d[\d.,]*k?)$/.test(text)), `requests/s were ${shown}`);
  const others = complaints.filter((text) => !/^Failed to load resource: net::ERR_.*\/state\)$/.test(text));
  assert.deepStrictEqual(others, [], "the browser complained of more than failed polls");
}

for (const act of [well, traffic, manyServers, zoneLost, serviceBroken, narrow, mended, fileBroken, stopped]) {
  console.log(`-- ${act.name}`);
  await act();
}
await browser.close();
process.exit(0);

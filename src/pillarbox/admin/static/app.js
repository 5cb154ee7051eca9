"use strict";
// The path of this browser's session; empty where no log-in is asked for. Kept for bookmarks: see enter.js.
const root = document.documentElement.dataset.root;
if (root) localStorage.setItem("pillarbox", root);
// The dashboard's live parts. Everything comes from this server; nothing else is asked.
const say = (text) => { const p = document.getElementById("said"); p.textContent = text; setTimeout(() => { if (p.textContent === text) p.textContent = ""; }, 6000); };

document.addEventListener("click", async (click) => {
  const button = click.target.closest("[data-post]");
  if (!button || (button.dataset.confirm && !confirm(button.dataset.confirm))) return;
  button.disabled = true;
  try {
    const answer = await fetch(button.dataset.post, { method: button.dataset.method || "POST" });
    const body = await answer.json();
    if (!answer.ok) { say(body.error || "That did not work."); return; }
    if (button.dataset.next) location.assign(button.dataset.next); else location.reload();
  } catch (error) { say("The server does not answer."); } finally { button.disabled = false; }
});

// ---- a table that is fetched again when something has happened, at most once a second
const live = document.querySelector("table[data-live]");
if (live) {
  let isDue = false, isWaiting = false;
  const fetchAgain = async () => {
    isDue = false;
    try {
      const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
      live.tBodies[0].replaceWith(page.getElementById(live.id).tBodies[0]);
    } catch (error) { say("The server does not answer."); }
  };
  const happened = () => {
    if (isWaiting) { isDue = true; return; }
    isWaiting = true;
    fetchAgain();
    setTimeout(() => { isWaiting = false; if (isDue) happened(); }, 1000);
  };
  new EventSource(`${root}/api/events?names=${live.dataset.live}`).onmessage = happened;
}

// ---- overview: counters and charts
const KEYS = ["accepted", "delivered", "deferred", "bounced"];
function rates(samples, key) {
  const found = [];
  for (let i = 1; i < samples.length; i++) {
    const seconds = samples[i].at - samples[i - 1].at, grown = samples[i][key] - samples[i - 1][key];
    found.push(seconds > 0 && grown >= 0 ? grown / seconds : 0);
  }
  return found;
}
// Mean seconds from acceptance to delivery, of what was delivered between two samples.
function latencies(samples) {
  const found = [];
  for (let i = 1; i < samples.length; i++) {
    const count = samples[i].delivered - samples[i - 1].delivered, seconds = samples[i].delivery_s - samples[i - 1].delivery_s;
    found.push(count > 0 && seconds >= 0 ? seconds / count : 0);
  }
  return found;
}
function plot(key, values) {
  const svg = document.querySelector(`[data-chart="${key}"]`);
  const most = Math.max(key === "latency" ? 0.01 : 1, ...values), step = 300 / Math.max(1, values.length - 1);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", values.map((v, i) => `${(i * step).toFixed(1)},${(57 - 54 * v / most).toFixed(1)}`).join(" "));
  svg.replaceChildren(line);
}
function draw(samples) {
  const waits = latencies(samples).slice(-360), last = waits.filter((v) => v > 0).pop();
  plot("latency", waits);
  document.querySelector('[data-rate="latency"]').textContent = last === undefined ? "–" : last.toFixed(last < 10 ? 2 : 0);
  for (const key of KEYS) {
    const values = rates(samples, key).slice(-360);
    plot(key, values);
    const last = values.length ? values[values.length - 1] : 0;
    document.querySelector(`[data-rate="${key}"]`).textContent = last >= 10 ? last.toFixed(0) : last.toFixed(1);
  }
}
async function refresh() {
  if (document.hidden) return;
  try {
    const [samples, status] = await Promise.all([fetch(`${root}/samples`).then((r) => r.json()), fetch(`${root}/api/status`).then((r) => r.json())]);
    draw(samples);
    for (const one of document.querySelectorAll("[data-counter]")) one.textContent = status.counters[one.dataset.counter];
    const page = new DOMParser().parseFromString(await (await fetch(`${root}/`)).text(), "text/html");
    for (const part of document.querySelectorAll("table[data-part]")) {
      // Not under somebody's finger.
      const now = page.getElementById(part.id);
      if (now && !part.contains(document.activeElement)) part.tBodies[0].replaceWith(now.tBodies[0]);
    }
  } catch (error) { say("The server does not answer."); }
}
if (document.querySelector("[data-chart]")) { refresh(); setInterval(refresh, 5000); }

// ---- events
const rows = document.getElementById("stream");
if (rows) {
  const names = document.getElementById("names"), text = document.getElementById("text"), pause = document.getElementById("pause");
  let source = null, isPaused = false, timer = 0;
  const add = (told) => {
    if (isPaused) return;
    const row = rows.insertRow(0), { event, ...rest } = told;
    row.insertCell().textContent = new Date().toLocaleTimeString("en-GB");
    row.insertCell().textContent = event;
    row.insertCell().textContent = Object.entries(rest).filter(([, v]) => v !== null && v !== "").map(([k, v]) => `${k}=${typeof v === "object" ? JSON.stringify(v) : v}`).join("  ");
    while (rows.rows.length > 500) rows.deleteRow(-1);
  };
  const open = () => {
    if (source) source.close();
    source = new EventSource(`${root}/api/events?names=${encodeURIComponent(names.value)}&text=${encodeURIComponent(text.value)}`);
    source.onmessage = (e) => add(JSON.parse(e.data));
  };
  names.addEventListener("change", open);
  text.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(open, 400); });
  pause.addEventListener("click", () => { isPaused = !isPaused; pause.textContent = isPaused ? "Go on" : "Pause"; pause.setAttribute("aria-pressed", isPaused); });
  open();
}

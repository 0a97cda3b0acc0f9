// Keeps the page's live part as it is on the server: each change that the
// server tells of, if it is about this page, fetches the page anew and swaps
// the part in. Without this script the page is whole, only not live.
"use strict";

(() => {
  const QUIET = 300; // ms between a change and the fetch, so that a burst is one fetch
  const SLOW = 10000; // ms between fetches that keep ages right
  const link = document.getElementById("link");
  const live = () => document.getElementById("live");
  let timer = 0;
  let fetching = false;
  let again = false;

  const say = (text) => { if (link.textContent !== text) link.textContent = text; };

  async function refresh() {
    timer = 0;
    if (fetching) { again = true; return; }
    fetching = true;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const part = page.getElementById("live");
      if (part && part.innerHTML !== live().innerHTML) swap(part, page);
    } catch {
      say("not live: the server does not answer");
    }
    fetching = false;
    if (again) { again = false; soon(); }
  }

  // Where the reader is stays: the focus, the selection's table and its scroll.
  function swap(part, page) {
    const focus = document.activeElement && live().contains(document.activeElement)
      ? document.activeElement.getAttribute("href") || document.activeElement.getAttribute("aria-labelledby") : null;
    const scrolls = new Map([...live().querySelectorAll(".wide")].map((e) => [e.getAttribute("aria-labelledby"), e.scrollLeft]));
    live().replaceWith(document.importNode(part, true));
    document.title = page.title;
    for (const e of live().querySelectorAll(".wide")) e.scrollLeft = scrolls.get(e.getAttribute("aria-labelledby")) || 0;
    if (focus) {
      const name = CSS.escape(focus);
      const e = live().querySelector(`[href="${name}"], [aria-labelledby="${name}"]`);
      if (e) e.focus({ preventScroll: true });
    }
  }

  function soon() { if (!timer) timer = setTimeout(refresh, QUIET); }

  function about(kind, data) {
    const set = live().dataset;
    if (set.live === "all") return true;
    if (kind === "job" && set.live === "job") return String(data.job) === set.job || data.state === "starting" || data.state === "queued";
    if (set.live === "gpu") return kind === "gpu" && String(data.gpu) === set.gpu;
    return kind === "vm" && String(data.vm) === set.vm;
  }

  if (!live() || !live().dataset.live) return;
  const events = new EventSource("/api/v1/events");
  for (const kind of ["job", "vm", "gpu"]) {
    events.addEventListener(kind, (e) => { if (about(kind, JSON.parse(e.data))) soon(); });
  }
  events.onopen = () => { say("live"); soon(); };
  events.onerror = () => say("not live: connecting again");
  setInterval(() => { if (!document.hidden) soon(); }, SLOW);
})();
